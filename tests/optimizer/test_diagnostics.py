"""The figures of single layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import lnb


def stepped(steps: int = 3, **settings: object) -> tuple[nn.Sequential, lnb.LNB]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    optimizer = lnb.LNB(net, 0.1, **settings)  # type: ignore[arg-type]
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(20, 6, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    return net, optimizer


def test_conjugate_gradients_report_a_residual_that_falls_with_iterations() -> None:
    residuals = [
        stepped(1, preset="paper", cg_iterations=k)[1].diagnostics(layers=True)["layer/0/residual"] for k in (1, 2, 30)
    ]
    assert residuals[0] > residuals[1] > residuals[2] >= 0
    assert residuals[2] < 1e-4 * residuals[0]


def test_gain_is_the_square_of_the_step_norm() -> None:
    figures = stepped(preset="paper")[1].diagnostics(layers=True)
    for layer in ("0", "2"):
        assert figures[f"layer/{layer}/gain"] == pytest.approx(figures[f"layer/{layer}/step_norm"] ** 2)


def test_refresh_age_counts_steps_since_the_second_moment_was_gathered() -> None:
    ages = [stepped(n, refresh_every=4)[1].diagnostics(layers=True)["layer/2/refresh_age"] for n in range(1, 8)]
    assert ages == [0, 0, 0, 1, 0, 1, 2]


def test_condition_sees_badly_scaled_inputs() -> None:
    values = []
    for scale in (1.0, 100.0):
        layer = nn.Linear(4, 3).double()
        optimizer = lnb.LNB(layer, 0.1, ridge=0.0, sample_ridge=0.0, trust_region="layer", block_size=None)
        x = torch.randn(500, 4, dtype=torch.float64) * torch.tensor([scale, 1.0, 1.0, 1.0], dtype=torch.float64)
        layer(x).square().mean().backward()
        optimizer.step()
        (name,) = [name for name in optimizer.diagnostics(layers=True) if name.endswith("/condition")]
        values.append(optimizer.diagnostics(layers=True)[name])
    assert values[0] < 2
    assert values[1] == pytest.approx(1e4, rel=0.3)


def test_a_copy_starts_without_figures() -> None:
    _, optimizer = copy.deepcopy(stepped())
    assert not [name for name in optimizer.diagnostics(layers=True) if name.endswith("gain")]
