"""The figures of single layers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import lnb
from lnb.reports import input_figures


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
        settings = {"ridge": 0.0, "sample_ridge": 0.0, "data_ridge": 0.0, "block_size": None}
        optimizer = lnb.LNB(layer, 0.1, trust_region="layer", **settings)
        x = torch.randn(500, 4, dtype=torch.float64) * torch.tensor([scale, 1.0, 1.0, 1.0], dtype=torch.float64)
        layer(x).square().mean().backward()
        optimizer.step()
        (name,) = [name for name in optimizer.diagnostics(layers=True) if name.endswith("/condition")]
        values.append(optimizer.diagnostics(layers=True)[name])
    assert values[0] < 2
    assert values[1] == pytest.approx(1e4, rel=0.3)


def of_inputs(x: Tensor, bias: bool = True, block_size: int | None = None, d_out: int = 3) -> dict[str, float]:
    """The figures of the inputs of one layer after a step on ``x``."""
    layer = nn.Linear(x.shape[1], d_out, bias=bias, dtype=x.dtype)
    optimizer = lnb.LNB(layer, block_size=block_size)
    layer(x).square().mean().backward()
    optimizer.step()
    figures = optimizer.diagnostics(inputs=True)
    return {name.rpartition("/")[2]: value for name, value in figures.items() if name.startswith("layer/")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block_size", [None, 4])
def test_ranks_conditions_and_dead_inputs_that_are_known(dtype: torch.dtype, block_size: int | None) -> None:
    """Inputs with the spectrum 16, 4, 1, 0 in two rotated blocks of four, of which one input is dead, and an offset."""
    rows = torch.randn(400, 8, dtype=torch.float64)
    white = torch.linalg.qr(rows - rows.mean(0)).Q * 20  # covariance 1
    turned = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    block = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64).diag() @ turned
    x = white @ torch.block_diag(block, 10 * block) + 30
    figures = of_inputs(x.to(dtype), block_size=block_size)
    assert (figures["inputs"], figures["input_rank"], figures["dead_inputs"]) == (8, 6, 0)
    assert figures["input_condition"] == pytest.approx(1600, rel=1e-2 if dtype == torch.float32 else 1e-9)
    without = of_inputs(x.to(dtype), bias=False, block_size=block_size)
    assert without["input_rank"] == (7 if block_size is None else 8)  # the offset is one direction more, of each block
    x[:, 5] = 0
    dead = of_inputs(x.to(dtype), block_size=block_size)
    assert (dead["input_rank"], dead["dead_inputs"]) == (
        6,
        1,
    )  # three directions of three inputs are left of that block


def test_few_rows_and_inputs_that_do_not_vary() -> None:
    assert of_inputs(torch.randn(5, 20))["input_rank"] == 4  # about their mean
    still = of_inputs(torch.ones(30, 4))
    assert still["input_rank"] == 0
    assert math.isnan(still["input_condition"])
    assert of_inputs(torch.zeros(30, 4))["dead_inputs"] == 4


def test_figures_of_inputs_of_layers_with_groups_and_without_moments() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 3))
    optimizer = lnb.LNB(net)
    assert not [name for name in optimizer.diagnostics(inputs=True) if name.startswith("layer/")]
    x = torch.randn(30, 4, 5, 5)
    x[:, 2:] *= torch.tensor([1.0, 10.0]).view(2, 1, 1)
    x[:, 1] = x[:, 0]
    net(x).square().mean().backward()
    optimizer.step()
    figures = optimizer.diagnostics(inputs=True)
    assert (figures["layer/0/inputs"], figures["layer/0/input_rank"]) == (4, 3)
    assert figures["layer/0/input_condition"] == pytest.approx(100, rel=0.1)
    assert (figures["layer/1/inputs"], figures["layer/1/input_rank"]) == (36, 27)  # two of its channels are one
    assert not [n for n in stepped(preset="paper")[1].diagnostics(inputs=True) if n.startswith("layer/")]


def test_blocks_too_large_for_eigenvalues_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_figures, "LARGEST", 7)
    x = torch.randn(30, 8)
    x[:, 3] = 0
    figures = of_inputs(x)
    assert math.isnan(figures["input_rank"])
    assert figures["dead_inputs"] == 1


def test_a_copy_starts_without_figures() -> None:
    _, optimizer = copy.deepcopy(stepped())
    assert not [name for name in optimizer.diagnostics(layers=True) if name.endswith("gain")]
