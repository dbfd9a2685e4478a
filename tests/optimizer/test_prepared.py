"""Steps from prepared tables are the steps of the general stages, and give way to these where they do not serve."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lnb
from lnb_kernels import _native, set_backend

pytestmark = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


class Net(nn.Module):
    """Layers of each kind, and parameters of none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv2d(2, 4, 3, groups=2, padding=1)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 20)
        self.narrow = nn.Linear(20, 6, bias=False)
        self.head = nn.Linear(6 + 64, 3)

    def forward(self, tokens: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """``[N, 5]`` and ``[N, 2, 4, 4]`` to ``[N, 3]``."""
        x = self.narrow(torch.tanh(self.wide(self.norm(self.embed(tokens))))).mean(1)
        y: torch.Tensor = self.head(torch.cat([x, self.conv(images).flatten(1)], dim=-1))
        return y


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


class Mixed(nn.Module):
    """A layer of each dtype, and parameters of none beside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, dtype=torch.float64)
        self.conv = nn.Conv2d(2, 4, 3, padding=1, dtype=torch.bfloat16)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 20, dtype=torch.float64)
        self.narrow = nn.Linear(20, 6, bias=False, dtype=torch.float16)
        self.head = nn.Linear(6 + 64, 3)

    def forward(self, tokens: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """As of :class:`Net`."""
        x = self.norm(self.embed(tokens).float())
        x = self.narrow(torch.tanh(self.wide(x.double())).half()).float().mean(1)
        image = self.conv(images.bfloat16()).float().flatten(1)
        y: torch.Tensor = self.head(torch.cat([x, image], dim=-1))
        return y


def backward(model: nn.Module, optimizer: lnb.LNB, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 11, (32, 5), generator=generator)
    images = torch.randn(32, 2, 4, 4, generator=generator).to(next(model.parameters()).dtype)
    target = torch.randint(0, 3, (32,), generator=generator)
    optimizer.zero_grad()
    output = model(tokens, images)
    nn.functional.cross_entropy(output if output.dtype == torch.float64 else output.float(), target).backward()


def prepared(optimizer: lnb.LNB) -> bool:
    return bool(optimizer._memory.prepared)


def optimizer_of(model: nn.Module, **settings: Any) -> lnb.LNB:
    parameters = list(model.parameters())
    groups = [{"params": parameters[:4], "lr": torch.tensor(0.02)}, {"params": parameters[4:], "weight_decay": 0.01}]
    return lnb.LNB(model, lr=0.05, params=groups, **settings)


def close(one: torch.Tensor, two: torch.Tensor, share: float) -> bool:
    """Products of many entries have as many roundings: the norm of the difference counts."""
    return bool(torch.linalg.vector_norm(one - two) <= share * torch.linalg.vector_norm(one) + 1e-6)


def stepped_beside(
    model: nn.Module, optimizer: lnb.LNB, seed: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, lnb.LNB]:
    """Make a step, and the same one from copies by the general stages; returns the copies."""
    other, twin = copy.deepcopy((model, optimizer))
    backward(model, optimizer, seed)
    optimizer.step()
    backward(other, twin, seed)
    with monkeypatch.context() as patched:
        patched.setattr("lnb.step.prepare", lambda *_: None)
        twin.step()
    assert not prepared(twin)
    return other, twin


@pytest.mark.parametrize(
    "settings", [{}, {"refresh_every": 1}, {"nesterov": False, "momentum": 0.8}, {"block_size": 5}]
)
def test_equal_to_the_general_stages(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step from the same state, so that rounding does not grow from step to step."""
    model = net()
    optimizer = optimizer_of(model, **settings)
    used = 0
    for seed in range(14):
        other, twin = stepped_beside(model, optimizer, seed, monkeypatch)
        used += prepared(optimizer)
        # A refresh of few samples divides by small numbers; how exact it is, another test compares.
        share = 2e-3 if "refresh_every" in settings or seed in (1, 2, 4, 8, 10) else 1e-5
        for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
            assert close(one, two, share), (seed, name)
            for key, value in optimizer.state[one].items():
                assert close(value, twin.state[two][key], 2e-3), (seed, name, key)
        mine, theirs = optimizer.diagnostics(layers=True), twin.diagnostics(layers=True)
        gains = [key for key in mine if key.endswith("/gain")]
        assert len(gains) == 4
        assert all(mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-8) for key in gains)
    assert used >= 12  # not while the state is being made


@pytest.mark.parametrize("settings", [{}, {"block_size": 5}])
def test_refreshes_are_as_exact_as_general_ones(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same step in float64, the largest errors over all refreshes."""
    model = net()
    optimizer = optimizer_of(model, refresh_every=1, **settings)
    errors: dict[str, list[float]] = {}
    for seed in range(4):
        exact = copy.deepcopy(model).double()
        reference = optimizer_of(exact, refresh_every=1, **settings)
        if seed > 0:
            reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        backward(exact, reference, seed)
        reference.step()
        other, twin = copy.deepcopy((model, optimizer))
        with monkeypatch.context() as patched:
            patched.setattr("lnb.routes.prepared.refresh_prepared", lambda _, due, *rest: list(due))
            backward(other, twin, seed)
            twin.step()
        backward(model, optimizer, seed)
        optimizer.step()
        for wanted, mine, theirs in zip(exact.parameters(), model.parameters(), other.parameters(), strict=True):
            for key in ("second_moment", "factor", "factor_mean", "output_moment", "output_factor"):
                if key in optimizer.state[mine]:
                    true = reference.state[wanted][key]
                    found = (optimizer.state[mine][key], twin.state[theirs][key])
                    errors.setdefault(key, [0.0, 0.0])
                    errors[key] = [
                        max(e, float((x - true).norm() / true.norm())) for e, x in zip(errors[key], found, strict=True)
                    ]
    assert len(errors) == 5
    for key, (native, general) in errors.items():
        assert native <= 2 * general + 1e-7, key


@pytest.mark.parametrize("masters", [True, False])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16, "mixed"])
def test_every_dtype_has_tables(kind: torch.dtype | str, masters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parameters to rounding; masters take over what someone else wrote."""
    torch.manual_seed(0)
    model = Mixed() if isinstance(kind, str) else net(kind)
    optimizer = optimizer_of(model, master_weights=masters)
    used = 0
    for seed in range(12):
        if seed == 6:
            with torch.no_grad():
                model.narrow.weight.mul_(0.5)
        other, twin = stepped_beside(model, optimizer, seed, monkeypatch)
        used += prepared(optimizer)
        for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
            ulp = torch.finfo(one.dtype).eps
            exact = 1e-10 if one.dtype == torch.float64 else 2e-3 if seed in (1, 2, 4, 8, 10) else 1e-5
            assert close(one.double(), two.double(), exact + ulp), (seed, name)
            for key, value in optimizer.state[one].items():
                assert value.dtype == twin.state[two][key].dtype
                assert close(value.double(), twin.state[two][key].double(), 1e-9 if ulp < 1e-10 else 2e-3), (
                    seed,
                    name,
                    key,
                )
    assert used >= 9


class Halves(nn.Module):
    """Two layers that are given one tensor, or, ``apart``, equal ones."""

    apart = False

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 8]`` to ``[N, 6]``."""
        return torch.tanh(self.one(x)) * self.two(x * 1.5 if self.apart else x)


def test_a_refresh_follows_inputs_and_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a refresh found is used again only while the same layers share an input, and states hold the same tensors."""
    torch.manual_seed(0)
    model = Halves()
    optimizer = lnb.LNB(model, 0.05, refresh_every=1)
    for step in range(8):
        model.apart = step in (3, 4)
        if step == 6:
            state = optimizer.state[model.one.weight]
            state["output_moment"] = state["output_moment"].clone()
        other, twin = copy.deepcopy((model, optimizer))
        for net_, its in ((model, optimizer), (other, twin)):
            its.zero_grad()
            net_(torch.randn(32, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        with monkeypatch.context() as patched:
            patched.setattr("lnb.step.prepare", lambda *_: None)
            twin.step()
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            assert close(one, two, 1e-3), step
            for key, value in optimizer.state[one].items():
                assert close(value, twin.state[two][key], 1e-3), (step, key)
        mine, theirs = (optimizer.state[layer.weight]["second_moment"] for layer in (model.one, model.two))
        assert (mine.data_ptr() == theirs.data_ptr()) == (step < 3)  # once apart, their averages differ
    assert prepared(optimizer)


def strided_gradient(model: Net) -> None:
    assert model.wide.weight.grad is not None
    model.wide.weight.grad = model.wide.weight.grad.t().contiguous().t()


def other_backend(model: Net) -> None:
    set_backend("reference")


def frozen(model: Net) -> None:
    model.wide.bias.grad = None


@pytest.mark.parametrize("change", [strided_gradient, other_backend, frozen])
def test_general_stages_take_what_the_tables_do_not_serve(change: Callable[[Net], None]) -> None:
    model = net()
    optimizer = optimizer_of(model)
    for seed in range(4):
        backward(model, optimizer, seed)
        optimizer.step()
    assert prepared(optimizer)
    before = copy.deepcopy(model.state_dict())
    backward(model, optimizer, 4)
    change(model)
    try:
        optimizer.step()
    finally:
        set_backend("auto")
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before) - ({"wide.bias"} if change is frozen else set())
    backward(model, optimizer, 5)
    optimizer.step()
    assert prepared(optimizer) == (change is not frozen)  # whose bias waits for the next refresh


def test_parameters_that_were_moved_are_written_where_they_are() -> None:
    model = net()
    optimizer = optimizer_of(model)
    for seed in range(3):
        backward(model, optimizer, seed)
        optimizer.step()
    former = model.wide.weight.data
    kept = former.clone()
    model.wide.weight.data = former.clone()
    backward(model, optimizer, 3)
    optimizer.step()
    assert torch.equal(former, kept)
    assert not torch.equal(model.wide.weight, kept)


def test_versions_of_moved_parameters_rise() -> None:
    """Autograd then refuses a backward pass through values that a step has overwritten."""
    model = net()
    optimizer = optimizer_of(model)
    for seed in range(3):
        backward(model, optimizer, seed)
        before = [parameter._version for parameter in model.parameters()]
        optimizer.step()
        assert all(p._version > version for p, version in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "settings", [{"preset": "paper"}, {"trust_region": "spectral"}, {"damping": "none"}, {"others": "identity"}]
)
def test_other_settings_have_no_tables(settings: dict[str, Any]) -> None:
    model = net()
    optimizer = optimizer_of(model, **settings)
    for seed in range(3):
        backward(model, optimizer, seed)
        optimizer.step()
    assert not prepared(optimizer)
