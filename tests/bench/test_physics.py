"""The benchmark of a physics-informed network: its residual, and that every optimizer makes its steps."""

from __future__ import annotations

import math

import physics
import pytest
import torch
from torch import Tensor, nn


class Exact(nn.Module):
    """The network whose ``x (1 - x) net(x)`` is the solution."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(math.pi * x) / (x * (1 - x))


def test_the_residual_of_the_solution_is_zero() -> None:
    x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).unsqueeze(1)
    assert physics.residual(Exact(), x).item() == pytest.approx(0, abs=1e-20)
    assert physics.residual(physics.network(), x).item() > 1


@pytest.mark.parametrize("name", physics.OPTIMIZERS)
def test_optimizers_lower_the_residual(name: str) -> None:
    rates, make = physics.OPTIMIZERS[name]
    x = torch.linspace(0, 1, 64, dtype=torch.float64).unsqueeze(1)
    found = physics.trained(make, rates[-1], 6)
    assert found["residuals"][6] < physics.residual(physics.network(), x).item()
