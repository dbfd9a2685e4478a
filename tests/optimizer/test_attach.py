"""Attaching changes nothing that a user can see, follows what can be followed, and names what cannot."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import (
    MODES,
    Batch,
    batches,
    copied,
    equal_parameters,
    loss_of,
    mixed,
    same,
    snapshot,
    train,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import lnb
import lnb_kernels as lk
from lnb.state.schema import SCHEMA, Kind


class KeepsForward(nn.Linear):
    """A subclass that only adds to the constructor."""

    def __init__(self, d_in: int, d_out: int, note: str = "mine") -> None:
        super().__init__(d_in, d_out)
        self.note = note


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (7, 5)),
    "linear-no-bias": (lambda: nn.Linear(5, 3, bias=False), (7, 5)),
    "linear-3d": (lambda: nn.Linear(5, 3), (2, 7, 5)),
    "linear-1d": (lambda: nn.Linear(5, 3), (5,)),
    "subclass": (lambda: KeepsForward(5, 3), (7, 5)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 7, 7)),
    "conv-same": (lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), (3, 4, 7, 7)),
    "conv-unbatched": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "conv-circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 7, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (3, 4, 9)),
    "conv1d-same": (lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=3, bias=False), (3, 4, 9)),
    "conv1d-valid": (lambda: nn.Conv1d(4, 6, 4, padding="valid"), (3, 4, 9)),
    "conv1d-pointwise": (lambda: nn.Conv1d(4, 6, 1), (3, 4, 9)),
    "conv1d-depthwise": (lambda: nn.Conv1d(4, 8, 5, padding=4, groups=4), (3, 4, 9)),
    "conv1d-unbatched": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv1d-circular": (lambda: nn.Conv1d(4, 6, 3, padding=2, stride=2, padding_mode="circular"), (3, 4, 9)),
    "conv1d-replicate": (lambda: nn.Conv1d(4, 6, 4, padding="same", padding_mode="replicate"), (3, 4, 9)),
    "conv1d-unbatched-reflect": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 9)),
    "conv-reflect": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same", padding_mode="reflect"), (3, 4, 7, 7)),
}


def named_classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_looks_and_computes_as_before(name: str, capturing: bool) -> None:
    make, shape = LAYERS[name]
    plain = make()
    layer = copy.deepcopy(plain)
    if capturing:
        lnb.LNB(layer, preset="paper")
    else:
        assert lnb.attach(layer) is layer
    assert repr(layer) == repr(plain)
    assert isinstance(layer, type(plain))
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in layer.named_modules()] == [n for n, _ in plain.named_modules()]
    x = torch.randn(shape)
    results = []
    for module in (plain, layer):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.square().sum().backward()
        results.append([out.detach(), leaf.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    layer.load_state_dict(plain.state_dict(), strict=True)
    lnb.detach(layer)
    assert type(layer) is type(plain)
    assert layer.__dict__.keys() == plain.__dict__.keys()
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate", "zeros"])
def test_padding_modes_count_the_padded_pixels(mode: str) -> None:
    conv = nn.Conv2d(3, 2, 3, padding=(1, 2), padding_mode=mode, dtype=torch.float64)
    optimizer = lnb.LNB(conv, preset="paper")
    x = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    conv(x).sum().backward()
    padded = F.pad(x, (2, 2, 1, 1), mode="constant" if mode == "zeros" else mode)
    patches = F.unfold(padded, 3).movedim(1, -1).reshape(-1, 27)
    torch.testing.assert_close(
        optimizer._inventory.layers[0].captures[0].moments.reshape(28, 28),
        lk.second_moment(patches),
        rtol=1e-12,
        atol=1e-12,
    )


def test_attaching_twice_and_detaching_twice() -> None:
    model = mixed()
    classes = named_classes(model)
    lnb.attach(model)
    attached = named_classes(model)
    assert attached != classes
    captures = [m._lnb_captures for m in model.modules() if hasattr(m, "_lnb_captures")]
    assert len(captures) == 3
    lnb.attach(model)
    assert named_classes(model) == attached
    assert all(
        a is b
        for a, b in zip(
            captures, [m._lnb_captures for m in model.modules() if hasattr(m, "_lnb_captures")], strict=True
        )
    )
    lnb.detach(lnb.detach(model))
    assert named_classes(model) == classes


def test_excluded_modules_stay() -> None:
    model = nn.Sequential(mixed(), nn.Linear(3, 3))
    lnb.attach(model, exclude=[model[0]])
    assert named_classes(model[0]) == named_classes(mixed())
    assert type(model[1]) is not nn.Linear


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OwnForward(4, 4), "OwnForward has its own forward"),
        (lambda: OwnConvForward(4, 4, 1), "own _conv_forward"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "computed from other parameters"),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "computed from other parameters"),
        (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "computed from other parameters"),
        (lambda: nn.LazyLinear(4), "run one forward pass"),
        (lambda: nn.Conv3d(4, 4, 1), "Conv3d is not claimed: no kernel"),
        (lambda: nn.Bilinear(4, 4, 4), "Bilinear is not claimed: its inputs are the products"),
        (lambda: nn.Linear(4, 4, dtype=torch.complex64), "complex"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_layers_that_are_not_claimed(make: Callable[[], nn.Module], reason: str) -> None:
    layer = make()
    cls = type(layer)
    lnb.attach(layer)
    assert type(layer) is cls
    with pytest.raises(ValueError, match="no layer that LNB can claim") as raised:
        lnb.LNB(layer)
    assert reason in str(raised.value)
    assert type(layer) is cls
    if layer.__class__ is not nn.Linear or not layer.weight.is_complex():
        model = nn.ModuleList([layer, nn.Linear(2, 2)])
        coverage = lnb.LNB(model).coverage()
        assert reason in str(coverage)
        assert ("unknown" in str(coverage)) == isinstance(layer, nn.LazyLinear)


def test_lazy_layers_after_their_first_forward() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Tanh(), nn.LazyConv2d(2, 1))
    model[:2](torch.zeros(1, 2, 4, 4))
    model = model[:2]
    optimizer = lnb.LNB(model, **MODES["paper"])
    assert optimizer.coverage()["1.weight"].metric == "second moment"
    train(model, optimizer, batches(1))


# -- changed after attaching ------------------------------------------------------------------------------------------


def detach_all(model: nn.Sequential) -> None:
    lnb.detach(model)


def replace_layer(model: nn.Sequential) -> None:
    model[5] = nn.Linear(8, 3)


def reassign_weight(model: nn.Sequential) -> None:
    model[5].weight = nn.Parameter(torch.randn(3, 8))


def reassign_bias(model: nn.Sequential) -> None:
    model[5].bias = nn.Parameter(torch.randn(3))


def drop_bias(model: nn.Sequential) -> None:
    model[5].bias = None


def parametrize_weight(model: nn.Sequential) -> None:
    parametrizations.orthogonal(model[5])


@pytest.mark.parametrize("zeros", [True, False], ids=["grad=None", "grad=0"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (detach_all, "layer '0' was detached"),
        (replace_layer, "layer '5' was replaced by another Linear"),
        (reassign_weight, "the weight of layer '5' was re-assigned"),
        (reassign_bias, "the bias of layer '5' was re-assigned"),
        (drop_bias, "the bias of layer '5' was re-assigned"),
        (parametrize_weight, "the weight of layer '5' was re-assigned"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_changed_layer_is_named(mode: str, change: Callable[[Any], None], words: str, zeros: bool) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES[mode])
    train(model, optimizer, batches(4))
    optimizer.zero_grad(set_to_none=zeros)
    change(model)
    before = snapshot(model, optimizer)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match=words):
        optimizer.step()
    assert same(snapshot(model, optimizer), before)
    again = lnb.LNB(model, **MODES[mode])  # what the message says to do
    train(model, again, batches(2))
    assert not same(snapshot(model, again)[0], before[0])


def test_a_replaced_ancestor_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(32, 3)))
    optimizer = lnb.LNB(model, **MODES["paper"])
    model[1] = nn.Sequential(nn.Linear(32, 3))
    with pytest.raises(RuntimeError, match=r"layer '1\.0' was replaced"):
        train(model, optimizer, batches(1))


def test_layers_can_move_inside_the_model_and_leave_it() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = mixed()
    optimizer = lnb.LNB(model, **MODES["paper"])
    model[3] = Wrapper(model[3])
    before = copied(dict(model.named_parameters()))
    train(model, optimizer, batches(1))
    assert not torch.equal(model[3].inner.weight, before["3.inner.weight"])
    last, model[5] = model[5], nn.Identity()
    del model[5]
    weight = last.weight.detach().clone()
    train(nn.Sequential(model, nn.Linear(8, 3)), optimizer, batches(1))
    assert torch.equal(last.weight, weight)


@pytest.mark.parametrize("mode", MODES)
def test_attaching_again_after_detaching(mode: str) -> None:
    a, b = mixed(), mixed()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (a, b)]
    lnb.attach(lnb.detach(b))
    train(b, lnb.LNB(b, **MODES[mode]), batches(3))
    train(a, optimizers[0], batches(3))
    assert equal_parameters(a, b)


@pytest.mark.parametrize("when", ["between steps", "before step"])
@pytest.mark.parametrize("mode", MODES)
def test_moving_to_another_precision_takes_everything_along(mode: str, when: str) -> None:
    """Float64 from a float32 start: the state goes along, and training is that of float64 up to float32's rounding."""
    moved, wide = mixed(), mixed().double()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (moved, wide)]
    train(moved, optimizers[0], batches(2))
    train(wide, optimizers[1], batches(2))
    for model, optimizer in zip((moved, wide), optimizers, strict=True):
        if when == "before step":
            optimizer.zero_grad()
            loss_of(model, batches(1, seed=7)[0]).backward()
        model.double()
        if when == "before step":
            optimizer.step()
        train(model, optimizer, batches(3, seed=8))
    state = [value for s in optimizers[0].state.values() for key, value in s.items() if "step" not in key]
    assert {value.dtype for value in state} == {torch.float64}
    assert optimizers[0].diagnostics()["skipped_steps"] == 0
    for p, q in zip(moved.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-4)


def test_moving_between_micro_batches_loses_no_rows() -> None:
    model = nn.Linear(4, 2)
    optimizer = lnb.LNB(model, preset="paper")
    model(torch.ones(3, 4)).sum().backward()
    model.double()
    model(torch.ones(5, 4, dtype=torch.float64)).sum().backward()
    assert optimizer._inventory.layers[0].captures[0].moments[0, 0, -1, -1] == 8


def assert_kept_in_float32(optimizer: lnb.LNB) -> None:
    """All state is float32, but for squares of gradients and what is compared with them, which are float64."""
    for state in optimizer.state.values():
        for key, value in state.items():
            assert value.dtype == (torch.float64 if SCHEMA[key].kind is Kind.WIDE else torch.float32), key


@pytest.mark.parametrize("mode", MODES)
def test_lower_precision_keeps_float32_state(mode: str) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES[mode])
    train(model, optimizer, batches(2))
    model.bfloat16()
    train(model, optimizer, batches(2))
    assert_kept_in_float32(optimizer)
    assert optimizer.diagnostics() == {"steps": 4, "skipped_steps": 0}


# -- the ways in which models are run ---------------------------------------------------------------------------------


def run_with(model: nn.Module, optimizer: lnb.LNB, forward: Callable[[Tensor], Tensor], data: list[Batch]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(mode: str, reentrant: bool) -> None:
    a, b = mixed(), mixed()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (a, b)]
    run_with(a, optimizers[0], lambda x: a(x.clone().requires_grad_()), batches(4))  # with gradients, it is no data
    run_with(b, optimizers[1], lambda x: checkpoint(b, x.clone().requires_grad_(), use_reentrant=reentrant), batches(4))
    assert equal_parameters(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_compile(mode: str, backend: str) -> None:
    torch._dynamo.reset()
    a, b = mixed(), mixed()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (a, b)]
    compiled = torch.compile(b, backend=backend, fullgraph=True)
    run_with(a, optimizers[0], a, batches(5))
    run_with(b, optimizers[1], compiled, batches(5))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert optimizers[1].diagnostics() == {"steps": 5, "skipped_steps": 0}


@pytest.mark.parametrize("mode", MODES)
def test_autocast(mode: str) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES[mode])
    before = loss_of(model, batches(1)[0]).item()
    for x, y in batches(1) * 15:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss_of(model, batches(1)[0]).item() < 0.7 * before
    assert optimizer.diagnostics() == {"steps": 15, "skipped_steps": 0}
    assert_kept_in_float32(optimizer)


@pytest.mark.parametrize("mode", MODES)
def test_grad_scaler(mode: str) -> None:
    """The loss scale reaches no statistics, and a step that the scaler skips leaves nothing behind."""
    plain, scaled = mixed(), mixed()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    for i, (x, y) in enumerate(batches(5)):
        if i == 2:  # an overflow: no step, half the scale
            bad = x.clone()
            bad[0] = 3e38
            optimizers[1].zero_grad()
            scaler.scale(F.cross_entropy(scaled(bad), y)).backward()
            scaler.step(optimizers[1])
            scaler.update()
        optimizers[1].zero_grad()
        scaler.scale(F.cross_entropy(scaled(x), y)).backward()
        scaler.step(optimizers[1])
        scaler.update()
        train(plain, optimizers[0], [(x, y)])
    assert scaler.get_scale() == 2.0**7
    assert optimizers[1].diagnostics() == {"steps": 5, "skipped_steps": 0}
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_grad_scaler_with_float16_autocast(mode: str) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES[mode])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = loss_of(model, batches(1)[0]).item()
    for x, y in batches(1) * 15:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert loss_of(model, batches(1)[0]).item() < 0.7 * before


def test_functional_call_leaves_the_layer_alone() -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES["paper"])
    x, _ = batches(1)[0]
    doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
    expected = mixed()
    expected.load_state_dict(doubled)
    assert torch.equal(torch.func.functional_call(model, doubled, x), expected(x))
    wide = {name: p.double() for name, p in doubled.items()}
    torch.func.functional_call(model, wide, x.double()).sum()
    train(model, optimizer, batches(1))


def test_torch_func_transforms() -> None:
    """Gradients, per-sample gradients and forward derivatives of an attached model that captures."""
    plain, model = mixed(), mixed()
    lnb.LNB(model, **MODES["paper"])
    x, y = batches(1)[0]
    values = {name: p.detach() for name, p in plain.named_parameters()}

    def loss(net: nn.Module, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, parameters, (x[None],)), y[None])

    results = []
    for net in (plain, model):
        each = torch.func.vmap(torch.func.grad(functools.partial(loss, net)), in_dims=(None, 0, 0))(values, x, y)
        _, tangent = torch.func.jvp(lambda p, net=net: torch.func.functional_call(net, p, (x,)), (values,), (values,))
        results.append([tangent, *each.values()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


class DataParallelLike(nn.Module):
    """What DDP does to a model, on one process: wraps it, and hooks every parameter's accumulated gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(self.average)

    @staticmethod
    def average(parameter: Tensor) -> None:
        parameter.grad.mul_(0.5)

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


@pytest.mark.parametrize("wrap_first", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_wrapped_models(mode: str, wrap_first: bool) -> None:
    a, b = mixed(), mixed()
    if wrap_first:
        wrapped = DataParallelLike(b)
        optimizer = lnb.LNB(wrapped, **MODES[mode])
    else:
        optimizer = lnb.LNB(b, **MODES[mode])
        wrapped = DataParallelLike(b)
    run_with(b, optimizer, wrapped, batches(3))
    reference = lnb.LNB(a, **MODES[mode])
    for batch in batches(3):
        reference.zero_grad()
        (0.5 * loss_of(a, batch)).backward()
        reference.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
