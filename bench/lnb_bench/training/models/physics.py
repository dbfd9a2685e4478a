"""Networks that are trained on the residual of a differential equation in place of its solution."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class PhysicsInformed(nn.Module):
    """A tanh network ``N`` inside an ansatz that meets the initial and boundary values by construction.

    While it trains, the output is what the equation's left side makes of the points, to be matched to its right side; else
    it is the solution. Weights are Glorot-normal, biases zero, all in float64: residuals of second order lose half the
    digits.

    Args:
        width: units of a hidden layer.
        depth: hidden layers, >= 1.
    """

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        sizes = [2, *[width] * depth, 1]
        layers: list[nn.Module] = []
        for d_in, d_out in pairwise(sizes):
            layers += [nn.Linear(d_in, d_out, dtype=torch.float64), nn.Tanh()]
        self.network = nn.Sequential(*layers[:-1])
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def solution(self, points: Tensor) -> Tensor:
        """The solution ``[n, 1]`` at ``points`` ``[n, 2]``."""
        raise NotImplementedError

    def left_side(self, points: Tensor, u: Tensor) -> Tensor:
        """The equation's left side ``[n, 1]`` of the solution ``u`` at ``points``, which requires gradients."""
        raise NotImplementedError

    def forward(self, points: Tensor) -> Tensor:
        """The left side ``[n, 1]`` at ``points`` ``[n, 2]`` while training, else the solution."""
        if not self.training:
            return self.solution(points)
        with torch.enable_grad():
            points = points.detach().requires_grad_(True)
            return self.left_side(points, self.solution(points))


class Burgers(PhysicsInformed):
    """``u_t + u u_x - nu u_xx = 0``, points ``(t, x)``; ``u = -sin(pi x)`` at ``t = 0``, and 0 at ``x = -1`` and ``x = 1``."""

    def __init__(self, viscosity: float, width: int = 32, depth: int = 4) -> None:
        super().__init__(width, depth)
        self.viscosity = viscosity

    def solution(self, points: Tensor) -> Tensor:
        """``-sin(pi x) + t (1 - x^2) N(t, x)``."""
        t, x = points[:, :1], points[:, 1:]
        u: Tensor = -torch.sin(math.pi * x) + t * (1 - x * x) * self.network(points)
        return u

    def left_side(self, points: Tensor, u: Tensor) -> Tensor:
        """``u_t + u u_x - nu u_xx``."""
        first = _gradient(u, points)
        second = _gradient(first[:, 1:], points)
        return first[:, :1] + u * first[:, 1:] - self.viscosity * second[:, 1:]


class Helmholtz(PhysicsInformed):
    """``u_xx + u_yy + k^2 u = f`` on the square ``[-1, 1]^2``, with 0 on its edges."""

    def __init__(self, wave_number: float, width: int = 32, depth: int = 4) -> None:
        super().__init__(width, depth)
        self.wave_number = wave_number

    def solution(self, points: Tensor) -> Tensor:
        """``(1 - x^2) (1 - y^2) N(x, y)``."""
        edges = 1 - points * points
        u: Tensor = edges[:, :1] * edges[:, 1:] * self.network(points)
        return u

    def left_side(self, points: Tensor, u: Tensor) -> Tensor:
        """``u_xx + u_yy + k^2 u``."""
        first = _gradient(u, points)
        x, y = (_gradient(first[:, i : i + 1], points)[:, i : i + 1] for i in (0, 1))
        return x + y + self.wave_number**2 * u


def _gradient(values: Tensor, points: Tensor) -> Tensor:
    """The derivatives ``[n, 2]`` of each value ``[n, 1]`` at its own point."""
    (gradient,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return gradient
