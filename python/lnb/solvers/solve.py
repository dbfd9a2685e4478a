"""From averaged gradients to directions: every layer by its solver."""

from __future__ import annotations

from torch import Tensor, nn

from lnb.context import LayerContext
from lnb.damping import Agreement
from lnb.solvers import Solver
from lnb.solvers.base import AddRows
from lnb.solvers.solution import Solution
from lnb.verdict import Verdict

__all__ = ["Solution", "solve"]


def solve(
    contexts: list[LayerContext],
    averages: dict[nn.Parameter, Tensor],
    verdict: Verdict,
    agreement: Agreement | None = None,
    add: AddRows | None = None,
) -> Solution:
    """The directions of all layers of one device, in the order of ``contexts``. Layers that keep a factor have it already.

    Args:
        contexts: the layers; their state is updated.
        averages: ``g~`` of every parameter. Directions of the two-sided region take their place.
        verdict: whether state may change.
        agreement: of the layers' gradients, where it shortens steps.
        add: where ranks share out the rows of layers, makes sums over all rows from those over the rows here.
    """
    solution = Solution([[] for _ in contexts])
    by_solver: dict[Solver, list[int]] = {}
    for i, context in enumerate(contexts):
        by_solver.setdefault(context.config.method, []).append(i)
    for solver, members in by_solver.items():
        solver.solve(solution, members, contexts, averages, verdict, agreement, add)
    return solution
