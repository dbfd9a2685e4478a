"""Gradients of any size: the step does not depend on it, and what no number can hold stands still alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import snapshot
from torch import Tensor, nn

import lnb

SOLVERS = ("pcg", "matrix_free", "dual", "cholesky", "arrow")
FREE_OF_SCALE: dict[str, dict[str, Any]] = {
    "default": {},
    "neuron": {"trust_region": "neuron"},
    "neuron-pcg": {"trust_region": "neuron", "solver": "pcg", "b_s": 0.0, "refresh_every": 1, "ridge_mode": "absolute"},
    "spectral": {"trust_region": "spectral"},
    "rms": {"trust_region": "rms"},
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 8, generator=generator), torch.randn(32, 2, generator=generator)


def train(model: nn.Module, optimizer: lnb.LNB, factor: float, steps: int = 12) -> None:
    for seed in range(steps):
        optimizer.zero_grad()
        x, y = batch(seed)
        F.mse_loss(model(x), y).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        optimizer.step()


@pytest.mark.parametrize("exponent", [-110, -73, -40, 40, 66, 100, 120])
@pytest.mark.parametrize("settings", FREE_OF_SCALE)
def test_the_step_does_not_depend_on_the_size_of_the_gradient(settings: str, exponent: int) -> None:
    """A power of two changes no digit of anything that is in range."""
    usual, scaled = network(), network()
    train(usual, lnb.LNB(usual, **FREE_OF_SCALE[settings]), 1.0)
    optimizer = lnb.LNB(scaled, **FREE_OF_SCALE[settings])
    train(scaled, optimizer, 2.0**exponent)
    assert optimizer.diagnostics() == {"steps": 12, "skipped_steps": 0}
    for a, b in zip(usual.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1e15, 1e20, 1e30])
@pytest.mark.parametrize("solver", ["pcg", "arrow", "cholesky"])
def test_the_papers_step_has_the_size_of_lr_however_large_the_gradient(solver: str, factor: float) -> None:
    usual, scaled = network(), network()
    settings: dict[str, Any] = {"preset": "paper", "solver": solver, "weight_decay": 0.0, "min_norm": 1e-9}
    train(usual, lnb.LNB(usual, **settings), 1.0)
    optimizer = lnb.LNB(scaled, **settings)
    train(scaled, optimizer, factor)
    assert optimizer.diagnostics() == {"steps": 12, "skipped_steps": 0}
    for a, b in zip(usual.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-21, 1e20])
def test_a_loss_of_any_scale_trains(factor: float) -> None:
    model = network()
    optimizer = lnb.LNB(model)
    x, y = torch.randn(64, 8), torch.randn(64, 2)
    first = F.mse_loss(model(x), y).item()
    for _ in range(40):
        optimizer.zero_grad()
        (F.mse_loss(model(x), y) * factor).backward()
        optimizer.step()
    assert optimizer.diagnostics()["skipped_steps"] == 0
    assert F.mse_loss(model(x), y).item() < 0.5 * first


class Recurrence(nn.Module):
    """A layer used a hundred times, which lets gradients vanish or explode beyond what float32 can square."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter, self.again, self.leave = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        with torch.no_grad():
            self.again.weight.copy_(gain * torch.eye(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(100):
            x = self.again(x)
        return self.leave(x)


@pytest.mark.parametrize("gain", [0.55, 1.25])
def test_a_layer_used_a_hundred_times(gain: float) -> None:
    model = Recurrence(gain)
    before = copy.deepcopy(model)
    optimizer = lnb.LNB(model)
    for seed in range(10):
        optimizer.zero_grad()
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        (model(x) * 1e8).sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
    assert optimizer.diagnostics() == {"steps": 10, "skipped_steps": 0}
    assert all(bool(after.isfinite().all()) for after in model.parameters())
    assert not torch.equal(model.enter.weight, before.enter.weight)
    assert not torch.equal(model.again.weight, before.again.weight)


@pytest.mark.parametrize("ridge", [0.0, 1e-7, 1e-6])
def test_one_row_and_hardly_a_ridge(ridge: float) -> None:
    """Rounding leaves such a metric far from positive definite."""
    for seed in (4, 5, 8, 13, 18):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 2))
        optimizer = lnb.LNB(model, ridge=ridge)
        finite = 0
        for _ in range(8):
            optimizer.zero_grad()
            F.mse_loss(model(torch.randn(1, 8)), torch.randn(1, 2)).backward()
            finite += all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
            optimizer.step()
        assert finite > 0
        assert optimizer.diagnostics() == {"steps": 8, "skipped_steps": 8 - finite}
        assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("scale", [1e-22, 1e-18, 1e-12, 1e12, 1e18])
def test_inputs_of_any_size_keep_everything_finite(scale: float) -> None:
    model = network()
    optimizer = lnb.LNB(model)
    for seed in range(12):
        optimizer.zero_grad()
        x, y = batch(seed)
        F.mse_loss(model(x * scale), y).backward()
        optimizer.step()
    assert optimizer.diagnostics() == {"steps": 12, "skipped_steps": 0}
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def broken_factor(optimizer: lnb.LNB, layer: nn.Linear) -> None:
    optimizer.state[layer.weight]["factor"].fill_(float("nan"))


@pytest.mark.parametrize("trust_region", ["two_sided", "neuron", "layer", "spectral", "rms", "global"])
def test_a_layer_without_a_finite_direction_stands_still_alone(trust_region: str) -> None:
    """The other layers move as if it were not there; it is counted by its name."""
    model = network()
    optimizer = lnb.LNB(model, 0.02, trust_region=trust_region)
    train(model, optimizer, 1.0, steps=4)
    before = copy.deepcopy(model)
    broken_factor(optimizer, model[0])
    train(model, optimizer, 1.0, steps=1)  # step 4 refreshes: the factor is made anew
    assert not torch.equal(model[0].weight, before[0].weight)
    assert optimizer.diagnostics() == {"steps": 5, "skipped_steps": 0}
    before = copy.deepcopy(model)
    broken_factor(optimizer, model[0])
    train(model, optimizer, 1.0, steps=2)  # steps 5 and 6 do not
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[0].bias, before[0].bias)
    assert not torch.equal(model[2].weight, before[2].weight)
    assert bool(model[2].weight.isfinite().all())
    assert optimizer.diagnostics() == {"steps": 7, "skipped_steps": 0, "stood_still/0": 2}


def test_other_parameters_with_gradients_beyond_all_squares() -> None:
    """Adam's mean square stays finite, and the parameter goes on when its gradients are of a usual size again."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = lnb.LNB(model)
    norm = model[1].weight
    for gradient in (1e20, 3e38, -3e38):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).sum().backward()
        norm.grad = torch.full_like(norm, gradient)
        before = norm.detach().clone()
        optimizer.step()
        assert bool(norm.isfinite().all())
        assert 0 < float((norm - before).detach().abs().max()) < 0.1
    assert bool(optimizer.state[norm]["gradient_square"].isfinite().all())
    assert optimizer.diagnostics() == {"steps": 3, "skipped_steps": 0}


def test_a_direction_that_overflows_leaves_the_state_finite() -> None:
    """Gradients near the largest float32, whose look-ahead average is beyond it."""
    model = network()
    optimizer = lnb.LNB(model)
    train(model, optimizer, 1.0, steps=2)
    optimizer.zero_grad()
    model(batch(0)[0]).sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.3e38)
    optimizer.step()
    train(model, optimizer, 1.0, steps=2)
    parameters, state = snapshot(model, optimizer)
    assert all(bool(value.isfinite().all()) for value in parameters.values())
    assert all(bool(value.isfinite().all()) for entry in state.values() for value in entry.values())
    assert optimizer.diagnostics()["skipped_steps"] == 0


@pytest.mark.parametrize("factor", [2.0**-126, 2.0**-136])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("trust_region", ["neuron", "layer", "global", "rms"])
def test_gradients_near_the_least_number_move_every_layer(trust_region: str, solver: str, factor: float) -> None:
    """What brings their directions to their length is beyond the largest float32."""
    model = network()
    before = copy.deepcopy(model)
    optimizer = lnb.LNB(model, preset="paper", trust_region=trust_region, solver=solver, weight_decay=0.0)
    train(model, optimizer, factor, steps=4)
    assert optimizer.diagnostics() == {"steps": 4, "skipped_steps": 0}
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert bool(a.isfinite().all())
        if trust_region in ("neuron", "rms"):  # the others have a least norm
            assert float((a - b).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(
    "settings", [{"preset": "fast"}, *({"preset": "paper", "solver": s} for s in SOLVERS)], ids=str
)
def test_inputs_too_large_to_be_squared_stop_their_layer_alone(settings: dict[str, Any]) -> None:
    """They enter no average: with inputs of a usual size, the layer goes on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    optimizer = lnb.LNB(model, **settings)
    x, y = torch.randn(16, 2, 4, 4), torch.randn(16, 2)
    for scale, moves in ((1.0, True), (1e20, False), (1.0, True)):
        before = copy.deepcopy(model)
        optimizer.zero_grad()
        F.mse_loss(model(x * scale), y).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.isfinite().all())
            parameter.grad.clamp_(-1, 1)
        optimizer.step()
        moved = (model[0].weight - before[0].weight).detach().abs().max()
        assert (float(moved) > 1e-4) == moves
        assert not torch.equal(model[3].weight, before[3].weight)
    parameters, state = snapshot(model, optimizer)
    assert all(bool(value.isfinite().all()) for value in parameters.values())
    assert all(bool(value.isfinite().all()) for entry in state.values() for value in entry.values())
    assert optimizer.diagnostics() == {"steps": 3, "skipped_steps": 0, "stood_still/0": 1}


@pytest.mark.parametrize("solver", ["matrix_free", "dual"])
def test_kept_inputs_count_while_the_squares_of_each_feature_are_in_range(solver: str) -> None:
    model = nn.Linear(64, 2)
    optimizer = lnb.LNB(model, preset="paper", solver=solver)
    model(torch.full((100, 64), 1e18) * torch.randn(100, 1).sign()).square().mean().mul(1e-20).backward()
    optimizer.step()
    assert optimizer.diagnostics() == {"steps": 1, "skipped_steps": 0}
