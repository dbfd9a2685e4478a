"""Conjugate gradients with products in bfloat16."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import lnb
import lnb_kernels as lk
from lnb.planning.rates import default_rates
from lnb.solvers import rounded_metric
from lnb.solvers.rounded_metric import RoundedMetric


def dense(x: Tensor, ridge: float, bias: bool) -> Tensor:
    """The metric in float64, ``[D+1, D+1]`` or ``[D, D]``."""
    s = lk.second_moment(x.double())
    metric = s / s[-1, -1]
    metric[:-1, :-1] += ridge * torch.eye(x.shape[-1], dtype=torch.float64)
    return metric if bias else metric[:-1, :-1]


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("bias", [True, False])
def test_error_is_that_of_a_rounded_product_at_any_offset(bias: bool, offset: float) -> None:
    """At most twice that of plain PyTorch's bfloat16 product with the covariance, however far the inputs are from zero."""
    torch.manual_seed(0)
    x = torch.randn(500, 96) @ torch.randn(96, 96) / 10
    v = torch.randn(1, 40, 96 + bias)
    weight = v[0, :, :96]
    covariance = torch.cov(x.T.double(), correction=0)
    plain = (weight.bfloat16() @ covariance.bfloat16()).double() - weight.double() @ covariance
    shifted = (x.double() + offset).float()
    # An offset moves the float32 second moment itself by its own rounding; what is given is exact for what it holds.
    s = lk.second_moment(shifted.double())
    found = RoundedMetric(s.float()[None] if offset == 0 else s[None], 0.1)(v.double() if offset else v)
    error = found[0].double() - v[0].double() @ dense(shifted, 0.1, bias)
    assert error.norm() <= 2 * plain.norm()
    assert error.norm() > 0


def test_groups_have_their_own_ridge_and_no_rows_give_the_ridge_alone() -> None:
    s = torch.stack([lk.second_moment(torch.randn(50, 8)), torch.zeros(9, 9)])
    ridge = torch.tensor([0.5, 2.0]).reshape(2, 1, 1)
    v = torch.randn(2, 3, 8)
    found = RoundedMetric(s, ridge)(v)
    exact = v[0] @ (s[0, :8, :8] / 50) + 0.5 * v[0]
    torch.testing.assert_close(found[0], exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found[1], 2 * v[1])


def directions(moment_dtype: torch.dtype | None, **settings: object) -> Tensor:
    torch.manual_seed(1)
    model = nn.Linear(260, 140)
    optimizer = lnb.LNB(model, 0.02, "paper", moment_dtype=moment_dtype, **settings)
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.randn(400, 260) + 3) - 1).square().sum().backward()
        optimizer.step()
    return optimizer.state[model.weight]["direction"].clone()


@pytest.mark.parametrize("settings", [{}, {"ridge_mode": "relative", "b_s": 0.5}, {"cg_scope": "neuron"}], ids=str)
def test_large_layers_are_solved_with_rounded_products(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU gains by it; the direction moves by no more than the rounding of the operands."""
    calls = []
    product = RoundedMetric.__call__

    def counted(self: RoundedMetric, v: Tensor) -> Tensor:
        calls.append(v.shape)
        return product(self, v)

    monkeypatch.setattr(RoundedMetric, "__call__", counted)
    monkeypatch.setattr(rounded_metric, "cpu_multiplies_bfloat16", lambda: False)
    exact = directions(torch.bfloat16, **settings)
    assert not calls
    monkeypatch.setattr(rounded_metric, "cpu_multiplies_bfloat16", lambda: True)
    rounded = directions(torch.bfloat16, **settings)
    assert calls == [(1, 140, 261)] * (2 + 3 + 3)  # the first step has no direction to start from
    assert 0 < (rounded - exact).norm() < 0.01 * exact.norm()


def test_the_plan_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded products are predicted at bfloat16's rate."""
    times = []
    for able in (True, False):
        monkeypatch.setattr(rounded_metric, "cpu_multiplies_bfloat16", lambda able=able: able)
        model = nn.Linear(512, 512)
        optimizer = lnb.LNB(model, 0.02, "paper", moment_dtype=torch.bfloat16)
        model(torch.randn(64, 512)).square().sum().backward()
        optimizer.step()
        known = default_rates(model.weight.device)
        twice = tuple((size, 2 * rate) for size, rate in known.curves["matmul/float32"])
        rates = dataclasses.replace(known, curves={**known.curves, "matmul/bfloat16": twice})
        cost = optimizer.plan(rates).rows[0].cost
        assert cost is not None
        times.append(cost.solve)
    assert times[0] < times[1]
