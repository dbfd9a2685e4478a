"""LNB as a ``torch.optim.Optimizer``: accumulation, frozen and unused layers, groups, schedulers, closures, hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizer.small_models import (
    MODES,
    batches,
    copied,
    equal_parameters,
    loss_of,
    mixed,
    same,
    snapshot,
    train,
    trained,
)
from torch import Tensor, nn
from torch.optim import lr_scheduler

import lnb


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return copied(dict(model.named_parameters()))


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


class Heads(nn.Module):
    """A trunk and two heads, of which a forward pass uses one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
        self.use = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.use](self.trunk(x))


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_are_one_batch(mode: str) -> None:
    models = [mixed().double(), mixed().double()]
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in models]
    for x, y in batches(6):
        optimizers[0].zero_grad()
        loss_of(models[0], (x, y)).backward()
        optimizers[1].zero_grad()
        for part in zip(x.chunk(4), y.chunk(4), strict=True):
            (loss_of(models[1], part) / 4).backward()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("zeros", [True, False], ids=["grad=None", "grad=0"])
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_no_backward_reached_stays(mode: str, zeros: bool) -> None:
    model = Heads()
    optimizer = lnb.LNB(model, **MODES[mode])
    train(model, optimizer, batches(2))
    model.use = 1
    train(model, optimizer, batches(2))
    model.use = 0
    state = {name: copied(optimizer.state[p]) for name, p in model.named_parameters()}
    before = parameters_of(model)
    for batch in batches(3):
        optimizer.zero_grad(set_to_none=zeros)
        loss_of(model, batch).backward()
        optimizer.step()
    assert moved(model, before) == {"trunk.1.weight", "trunk.1.bias", "heads.0.weight", "heads.0.bias"}
    for name in ("heads.1.weight", "heads.1.bias"):
        assert same(state[name], copied(optimizer.state[model.get_parameter(name)]))
    model.use = 1  # and when it is used again, it moves
    train(model, optimizer, batches(1))
    assert {"heads.1.weight", "heads.1.bias"} <= moved(model, before)


@pytest.mark.parametrize("mode", MODES)
def test_zeroing_in_place_trains_like_zeroing_to_none(mode: str) -> None:
    a, b = mixed(), mixed()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (a, b)]
    for batch in batches(4):
        for model, optimizer, to_none in zip((a, b), optimizers, (True, False), strict=True):
            optimizer.zero_grad(set_to_none=to_none)
            loss_of(model, batch).backward()
            optimizer.step()
    assert equal_parameters(a, b)


@pytest.mark.parametrize("frozen", ["5.weight", "5.bias", "3.weight", "0.weight", "0.bias"])
@pytest.mark.parametrize("mode", MODES)
def test_frozen_and_thawed(mode: str, frozen: str) -> None:
    model, optimizer = trained(mode)
    parameter = model.get_parameter(frozen)
    optimizer.zero_grad()
    parameter.requires_grad_(False)
    state, before = copied(optimizer.state[parameter]), parameters_of(model)
    train(model, optimizer, batches(3, seed=4))
    assert moved(model, before) == before.keys() - {frozen}
    if frozen.endswith("bias") or mode == "matrix-free":
        assert same(copied(optimizer.state[parameter]), state)
    parameter.requires_grad_(True)
    before = parameters_of(model)
    train(model, optimizer, batches(3, seed=5))
    assert moved(model, before) == before.keys()
    assert all(p.isfinite().all() for p in model.parameters())
    assert optimizer.diagnostics() == {"steps": 9, "skipped_steps": 0}


@pytest.mark.parametrize("mode", MODES)
def test_frozen_from_the_start_costs_nothing_and_thaws(mode: str) -> None:
    model = mixed()
    model[0].requires_grad_(False)
    optimizer = lnb.LNB(model, **MODES[mode])
    x, _ = batches(1)[0]
    assert not model[0](x).requires_grad
    assert optimizer.coverage()["0.weight"].metric == "none"
    before = parameters_of(model)
    train(model, optimizer, batches(6))
    assert moved(model, before) == before.keys() - {"0.weight", "0.bias"}
    assert model[0].weight not in optimizer.state
    model[0].requires_grad_(True)
    train(model, optimizer, batches(2))
    assert moved(model, before) == before.keys()


@pytest.mark.parametrize("mode", MODES)
def test_eval_mode_makes_no_difference(mode: str) -> None:
    a, b = mixed(), mixed()
    b.eval()
    train(a, lnb.LNB(a, **MODES[mode]), batches(3))
    train(b, lnb.LNB(b, **MODES[mode]), batches(3))
    assert equal_parameters(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_validation_between_steps_leaves_no_trace(mode: str) -> None:
    a, b = mixed(), mixed()
    optimizers = [lnb.LNB(model, **MODES[mode]) for model in (a, b)]
    for batch in batches(4):
        train(a, optimizers[0], [batch])
        with torch.no_grad():
            loss_of(b, batches(1, seed=8)[0])
        with torch.inference_mode():
            loss_of(b, batches(1, seed=8)[0])
        loss_of(b, batches(1, seed=8)[0]).backward()  # a gradient that zero_grad() then drops, with its rows
        train(b, optimizers[1], [batch])
    assert equal_parameters(a, b)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_without_rows_moves_no_layer(mode: str, steps: int) -> None:
    model, optimizer = trained(mode, steps=steps)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = parameters_of(model)
    statistics = ("mean", "mean_square", "second_moment", "factor", "factor_mean", "moment_step")
    kept = [{k: v for k, v in copied(state).items() if k in statistics} for state in optimizer.state.values()]
    optimizer.zero_grad()
    model(torch.zeros(0, 2, 4, 4)).sum().backward()
    optimizer.step()
    if mode not in ("factored", "fast") or steps == 0:
        assert moved(model, before) <= {"4.weight", "4.bias"}  # the norm follows its gradient average
    if steps:
        after = [{k: v for k, v in copied(state).items() if k in statistics} for state in optimizer.state.values()]
        assert same(after, kept)
    train(model, optimizer, batches(3, seed=6))
    assert optimizer.diagnostics() == {"steps": steps + 4, "skipped_steps": 0}
    assert moved(model, before) == before.keys()


class Tied(nn.Module):
    """An embedding tied to the last layer, and two layers that share weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embedding, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.last = nn.Linear(6, 7, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.b(torch.tanh(self.a(self.norm(self.embedding(tokens))))))


@pytest.mark.parametrize("mode", MODES)
def test_tied_weights(mode: str) -> None:
    model = Tied()
    once = copy.deepcopy(model)
    once.b = once.a  # the same function by one module used twice
    for net in (model, once):
        optimizer = lnb.LNB(net, **MODES[mode])
        assert "shared" in optimizer.coverage()["embedding.weight"].reason
        assert optimizer.coverage()["a.weight"].metric == "second moment"
        for seed in range(3):
            tokens = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            net(tokens).logsumexp(-1).mean().backward()
            optimizer.step()
    assert torch.equal(model.last.weight, model.embedding.weight)
    assert torch.equal(model.b.weight, model.a.weight)
    for name, p in once.named_parameters():
        torch.testing.assert_close(p, model.get_parameter(name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_groups_have_their_own_lr(mode: str) -> None:
    model = mixed()
    head = {id(p) for p in model[5].parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in head]},
        {"params": model[5].parameters(), "lr": 0.0},
    ]
    optimizer = lnb.LNB(model, params=groups, **MODES[mode])
    before = parameters_of(model)
    train(model, optimizer, batches(2))
    assert moved(model, before) == {"0.weight", "0.bias", "3.weight", "4.weight", "4.bias"}


def test_groups_have_their_own_ridge() -> None:
    """With a large ridge ``h -> g~ / ridge``: that layer alone follows its gradient."""
    model = nn.Sequential(
        nn.Linear(5, 4, dtype=torch.float64), nn.Tanh(), nn.Linear(4, 2, bias=False, dtype=torch.float64)
    )
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters()},
        {"params": model[2].parameters(), "ridge": 1e9},
    ]
    optimizer = lnb.LNB(
        model, 0.1, "paper", params=groups, cg_iterations=20, weight_decay=0.0, trust_region="layer", min_norm=1e-9
    )
    before = parameters_of(model)
    model(torch.randn(30, 5, dtype=torch.float64)).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    angles = []
    for name in ("0.weight", "2.weight"):
        step = before[name] - model.get_parameter(name).detach()
        angles.append(torch.cosine_similarity(step.flatten(), gradients[name].flatten(), dim=0).item())
    assert angles[0] < 0.999
    assert angles[1] == pytest.approx(1.0, abs=1e-9)


def test_weight_decay_of_a_group() -> None:
    a, b = mixed(), mixed()
    decayed = lnb.LNB(
        a, params=[{"params": a.parameters(), "weight_decay": 0.5}], **MODES["paper"] | {"weight_decay": 0.0}
    )
    plain = lnb.LNB(b, **MODES["paper"] | {"weight_decay": 0.0})
    start = parameters_of(b)
    train(a, decayed, batches(1))
    train(b, plain, batches(1))
    for name, p in a.named_parameters():
        torch.testing.assert_close(p, b.get_parameter(name) - 0.05 * 0.5 * start[name])


SCHEDULERS = {
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8, cycle_momentum=False),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "step": lambda o: lr_scheduler.StepLR(o, step_size=2),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.5)], [3]
    ),
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("mode", MODES)
def test_schedulers(mode: str, name: str, tensor_lr: bool) -> None:
    """With a scheduler the steps are those of an optimizer whose lr is set by hand to what AdamW's would be."""
    lr = MODES[mode]["lr"]
    dummy = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    reference = SCHEDULERS[name](dummy)
    a, b = mixed(), mixed()
    scheduled = lnb.LNB(a, **MODES[mode] | {"lr": torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr})
    by_hand = lnb.LNB(b, **MODES[mode])
    scheduler = SCHEDULERS[name](scheduled)
    seen = []
    for batch in batches(6):
        by_hand.param_groups[0]["lr"] = float(dummy.param_groups[0]["lr"])
        seen.append(by_hand.param_groups[0]["lr"])
        assert float(scheduled.param_groups[0]["lr"]) == pytest.approx(seen[-1], rel=1e-12)
        train(a, scheduled, [batch])
        train(b, by_hand, [batch])
        scheduler.step()
        dummy.step()
        reference.step()
    assert len(set(seen)) > 2
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_reduce_on_plateau() -> None:
    model, optimizer = trained("paper", steps=1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)
    train(model, optimizer, batches(1))


def test_one_cycle_cannot_cycle_momentum() -> None:
    with pytest.raises(ValueError, match="cycle_momentum"):
        lr_scheduler.OneCycleLR(trained("paper", steps=0)[1], max_lr=0.1, total_steps=8)


@pytest.mark.parametrize("mode", MODES)
def test_closure(mode: str) -> None:
    a, b = mixed(), mixed()
    plain, closed = lnb.LNB(a, **MODES[mode]), lnb.LNB(b, **MODES[mode])
    for batch in batches(3):
        train(a, plain, [batch])

        def closure(batch: Any = batch) -> Tensor:
            closed.zero_grad()
            loss = loss_of(b, batch)
            loss.backward()
            return loss

        with torch.no_grad():
            expected = loss_of(b, batch)
            assert torch.equal(closed.step(closure).detach(), expected)
    assert equal_parameters(a, b)


def test_step_hooks_and_profile() -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES["paper"])
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append("pre"))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(f"post {opt.diagnostics()['steps']}"))
    train(model, optimizer, batches(2))
    assert seen == ["pre", "post 1", "pre", "post 2"]


def test_a_step_without_backward_does_nothing() -> None:
    model, optimizer = trained("paper", steps=2)
    optimizer.zero_grad()
    before = snapshot(model, optimizer)
    optimizer.step()
    assert same(snapshot(model, optimizer), before)


@pytest.mark.parametrize("mode", ["paper", "matrix-free"])
def test_a_second_step_on_the_same_gradient_is_an_error(mode: str) -> None:
    model, optimizer = trained(mode, steps=2)
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="layer '0' has a gradient, but its input was not seen"):
        optimizer.step()
    assert same(snapshot(model, optimizer), before)
    train(model, optimizer, batches(1))


@pytest.mark.parametrize("mode", MODES)
def test_a_group_added_later(mode: str) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, params=[p for m in model[:5] for p in m.parameters()], **MODES[mode])
    assert optimizer.coverage()["5.weight"].metric == "none"
    before = parameters_of(model)
    train(model, optimizer, batches(5))
    assert moved(model, before) == before.keys() - {"5.weight", "5.bias"}
    optimizer.add_param_group({"params": model[5].parameters(), "lr": 0.01})
    assert optimizer.coverage()["5.weight"].metric == "second moment"
    train(model, optimizer, batches(3))
    assert moved(model, before) == before.keys()


@pytest.mark.parametrize("mode", MODES)
def test_a_foreign_parameter(mode: str) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES[mode])
    foreign = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": foreign})
    optimizer.zero_grad()
    (loss_of(model, batches(1)[0]) + foreign.square().sum()).backward()
    optimizer.step()
    assert (foreign < 1).all()
    assert "not a parameter of the attached model" in str(optimizer.coverage())


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        ({"params": [torch.zeros(2, requires_grad=True)], "lr": -1.0}, ValueError, "lr=-1.0"),
        ({"params": [torch.zeros(2, requires_grad=True)], "ridge": -2.0}, ValueError, "ridge=-2.0"),
        ({"params": [torch.zeros(2, requires_grad=True)], "weight_decay": "no"}, TypeError, "weight_decay='no'"),
        (
            {"params": [torch.zeros(2, requires_grad=True)], "momentum": 0.5},
            ValueError,
            "momentum=0.5 cannot be set per group",
        ),
        ({"params": [torch.zeros(2, dtype=torch.complex64, requires_grad=True)]}, TypeError, "complex64"),
        ({"params": [torch.zeros(2, requires_grad=True).exp()]}, ValueError, "leaf"),
        ({"params": ["x"]}, TypeError, "str"),
        ({"lr": 0.1}, ValueError, "'params'"),
        ([torch.zeros(2, requires_grad=True)], TypeError, "dict"),
    ],
)
def test_a_bad_group_is_not_added(group: Any, error: type[Exception], words: str) -> None:
    model, optimizer = trained("paper", steps=1)
    before = copied(optimizer.state_dict())
    with pytest.raises(error) as raised:
        optimizer.add_param_group(group)
    assert words in str(raised.value)
    assert same(copied(optimizer.state_dict()), before)
    train(model, optimizer, batches(1))


def test_a_parameter_in_two_groups_is_not_added() -> None:
    model, optimizer = trained("paper", steps=1)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model[5].parameters()})
    assert len(optimizer.param_groups) == 1


def test_a_group_with_a_bad_lr_stops_the_step() -> None:
    model, optimizer = trained("paper", steps=2)
    before = snapshot(model, optimizer)
    optimizer.param_groups[0]["lr"] = -0.5
    with pytest.raises(ValueError, match=r"lr=-0\.5"):
        train(model, optimizer, batches(1))
    assert same(snapshot(model, optimizer), before)
    optimizer.param_groups[0]["lr"] = 0.05
    train(model, optimizer, batches(1))


def test_named_parameters() -> None:
    a, b = mixed(), mixed()
    train(a, lnb.LNB(a, params=a.named_parameters(), **MODES["paper"]), batches(2))
    optimizer = lnb.LNB(b, **MODES["paper"])
    train(b, optimizer, batches(2))
    assert equal_parameters(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_two_optimizers_share_a_model(mode: str) -> None:
    """Two optimizers with halves of one model, stepped in turn: neither drops what the other's layers saw."""
    model = mixed()
    halves = [p for m in model[:3] for p in m.parameters()], [p for m in model[3:] for p in m.parameters()]
    optimizers = [lnb.LNB(model, params=half, **MODES[mode]) for half in halves]
    before = parameters_of(model)
    for batch in batches(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert moved(model, before) == before.keys()


@pytest.mark.parametrize(
    ("mode", "other"),
    [*((mode, "fast") for mode in MODES), ("factored", "matrix-free"), ("fast", "matrix-free")],
)
def test_another_optimizer_of_the_same_layers_is_an_error(mode: str, other: str) -> None:
    """The one that steps decides what is gathered, and the other finds nothing: an error, not a step without a metric."""
    model = mixed()
    waiting = lnb.LNB(model, **MODES[mode])
    train(model, lnb.LNB(model, **MODES[other]), batches(3))  # "fast" gathers nothing for its fourth step
    before = snapshot(model, waiting)
    with pytest.raises(RuntimeError, match="another LNB of the same model has made a step"):
        train(model, waiting, batches(1))
    assert same(snapshot(model, waiting), before)


def test_gradients_are_left_as_they_are() -> None:
    model, optimizer = trained("paper", steps=1)
    optimizer.zero_grad()
    loss_of(model, batches(1)[0]).backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
