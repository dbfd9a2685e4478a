"""From averaged gradients to directions: every layer by its solver."""

from __future__ import annotations

from torch import Tensor, nn

from lnb.damping import Agreement
from lnb.solvers import Solver
from lnb.solvers.base import AddRows
from lnb.solvers.solution import Solution
from lnb.verdict import Verdict
from lnb.work import LayerWork

__all__ = ["Solution", "solve"]


def solve(
    works: list[LayerWork],
    averages: dict[nn.Parameter, Tensor],
    verdict: Verdict,
    agreement: Agreement | None = None,
    add: AddRows | None = None,
) -> Solution:
    """The directions of all layers of one device, in the order of ``works``. Layers that keep a factor have it already.

    Args:
        works: the layers; their state is updated.
        averages: ``g~`` of every parameter. Directions of the two-sided region take their place.
        verdict: whether state may change.
        agreement: of the layers' gradients, where it shortens steps.
        add: where the layers are rows of layers, makes sums over all rows of those here.
    """
    solution = Solution([[] for _ in works])
    by_solver: dict[Solver, list[int]] = {}
    for i, work in enumerate(works):
        by_solver.setdefault(work.config.method, []).append(i)
    for solver, members in by_solver.items():
        solver.solve(solution, members, works, averages, verdict, agreement, add)
    return solution
