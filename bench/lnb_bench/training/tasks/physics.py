"""Differential equations solved by a network that sees no solution: residuals for training, the exact solution as the test.

Both losses are ill-conditioned by nature. All points are in every step, so that there is no noise.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lnb_bench.training.data.files import Array
from lnb_bench.training.data.splits import VectorSplit
from lnb_bench.training.models.physics import Burgers, Helmholtz
from lnb_bench.training.objectives import LeastSquares
from lnb_bench.training.tasks.base import Task, TaskOptions, choose

POINTS = 1000
GRID = 64  # test points along each coordinate
VISCOSITY = 0.01 / math.pi
WAVE_NUMBER = 1.0
NODES = 160  # of the quadrature: twice as many change the solution by less than 1e-10


def burgers(options: TaskOptions) -> Task:
    """Burgers' equation with the front of ``nu = 0.01 / pi``, as in Raissi et al. (arXiv:1711.10561)."""
    choose(options, "burgers", ("physics-informed",))
    train = _drawn(low=(0.0, -1.0), high=(1.0, 1.0))
    grid = _grid(torch.linspace(0, 1, GRID, dtype=torch.float64), torch.linspace(-1, 1, GRID, dtype=torch.float64))
    t, x = grid.T.numpy()
    exact = torch.from_numpy(burgers_solution(t, x, VISCOSITY))[:, None]
    build = partial(Burgers, VISCOSITY, **options.take("width", "depth"))
    return Task(
        "burgers",
        VectorSplit(train, torch.zeros(len(train), 1, dtype=torch.float64)),
        VectorSplit(grid, exact),
        build,
        LeastSquares(),
        batch_size=POINTS,
        steps=2000,
    )


def helmholtz(options: TaskOptions) -> Task:
    """``u_xx + u_yy + u = f`` whose solution is ``sin(pi x) sin(4 pi y)``, as in Wang et al. (arXiv:2001.04536)."""
    choose(options, "helmholtz", ("physics-informed",))
    frequency = options.take("frequency", frequency=4)["frequency"]

    def solution(points: Tensor) -> Tensor:
        return torch.sin(math.pi * points[:, :1]) * torch.sin(frequency * math.pi * points[:, 1:])

    train = _drawn(low=(-1.0, -1.0), high=(1.0, 1.0))
    side = torch.linspace(-1, 1, GRID, dtype=torch.float64)
    grid = _grid(side, side)
    factor = WAVE_NUMBER**2 - math.pi**2 * (1 + frequency**2)
    build = partial(Helmholtz, WAVE_NUMBER, **options.take("width", "depth"))
    return Task(
        "helmholtz",
        VectorSplit(train, factor * solution(train)),
        VectorSplit(grid, solution(grid)),
        build,
        LeastSquares(),
        batch_size=POINTS,
        steps=2000,
    )


def burgers_solution(t: Array, x: Array, viscosity: float, nodes: int = NODES) -> Array:
    """The solution at ``(t, x)``, all ``[n]`` float64, by the transform of Cole and Hopf and Gauss-Hermite quadrature.

    ``u = -E[sin(pi (x - s)) w] / E[w]`` with ``w = exp(-cos(pi (x - s)) / (2 pi nu))`` and ``s`` normal of variance
    ``2 nu t``; the weights are taken relative to the largest, for ``w`` alone overflows where ``nu`` is small.
    """
    roots, weights = np.polynomial.hermite.hermgauss(nodes)
    angles = math.pi * (x[:, None] - roots * np.sqrt(4 * viscosity * t)[:, None])
    exponents = -np.cos(angles) / (2 * math.pi * viscosity)
    factors = weights * np.exp(exponents - exponents.max(1, keepdims=True))
    solution: Array = -(np.sin(angles) * factors).sum(1) / factors.sum(1)
    return solution


def _drawn(low: tuple[float, float], high: tuple[float, float]) -> Tensor:
    """:data:`POINTS` points ``[n, 2]`` of a Sobol sequence in a rectangle, the same in every run."""
    places = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(POINTS, dtype=torch.float64)
    lower, upper = (torch.tensor(corner, dtype=torch.float64) for corner in (low, high))
    return lower + (upper - lower) * places


def _grid(first: Tensor, second: Tensor) -> Tensor:
    """All pairs of the two, ``[n, 2]``."""
    return torch.cartesian_prod(first, second)
