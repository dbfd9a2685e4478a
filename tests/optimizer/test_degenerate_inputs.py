"""Inputs that do not vary: a single row, equal rows, zeros. Their covariance is zero, and says nothing of inputs to come."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb

LR = 0.05
INPUTS = {
    "one row": lambda: torch.rand(1, 12),
    "equal rows": lambda: torch.rand(1, 12).expand(16, -1),
    "zeros": lambda: torch.zeros(16, 12),
}


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def step_on(model: nn.Module, optimizer: lnb.LNB, x: Tensor) -> None:
    optimizer.zero_grad()
    targets = torch.arange(len(x)) % 3
    F.cross_entropy(model(x.to(next(model.parameters()).dtype)), targets).backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("preset", ["paper", "fast"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_the_network_moves_and_survives(preset: str, kind: str, dtype: torch.dtype, shrinkage: float) -> None:
    """The step counts, and other inputs see a change of the step's size, not one magnified by a vanishing variance."""
    model = network(dtype)
    optimizer = lnb.LNB(model, LR, preset, shrinkage=shrinkage)
    torch.manual_seed(1)
    others = torch.rand(64, 12, dtype=dtype)
    for _ in range(3):
        hidden, bias = model[0](others).detach(), model[2].bias.detach().clone()
        step_on(model, optimizer, INPUTS[kind]())
        assert not torch.equal(model[2].bias, bias)
        assert float((model[0](others).detach() - hidden).square().mean().sqrt()) < 4 * LR
    assert optimizer.diagnostics()["skipped_steps"] == 0


def test_a_layer_wakes_up_from_zero_inputs_at_the_size_of_a_step() -> None:
    """Its factor, made of zeros, serves until the next refresh."""
    model = nn.Linear(12, 3)
    optimizer = lnb.LNB(model, LR, refresh_every=10)
    for _ in range(9):  # steps 0, 1, 2, 4 and 8 refresh
        step_on(model, optimizer, torch.zeros(16, 12))
    torch.manual_seed(1)
    x = torch.rand(16, 12)
    with torch.no_grad():
        before = model(x)
    step_on(model, optimizer, x)
    assert 0 < float((model(x) - before).detach().square().mean().sqrt()) < 4 * LR


def test_one_row_has_the_exact_direction() -> None:
    """``h = g (x~ x~' + ridge diag(1..1, 0))^-1``, which conjugate gradients from the arrow find."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).double()
    before = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().clone()
    optimizer = lnb.LNB(layer, LR, "paper", cg_iterations=40, weight_decay=0.0, ridge=0.3)
    x = torch.rand(1, 6, dtype=torch.float64)
    step_on(layer, optimizer, x)
    gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)  # type: ignore[index, list-item]
    row = torch.cat([x, torch.ones(1, 1, dtype=torch.float64)], 1)
    metric = row.T @ row + 0.3 * torch.diag(torch.tensor([1.0] * 6 + [0.0], dtype=torch.float64))
    h = torch.linalg.solve(metric, gradient.T).T
    expected = before - LR * h / (h * gradient).sum().sqrt()
    torch.testing.assert_close(torch.cat([layer.weight, layer.bias[:, None]], 1), expected, rtol=1e-6, atol=1e-9)
