"""From averaged gradients to directions: every layer by its solver."""

from __future__ import annotations

from lnb.solvers import Solver
from lnb.solvers.solution import Solution, SolverInputs

__all__ = ["Solution", "SolverInputs", "solve"]


def solve(given: SolverInputs) -> Solution:
    """The directions of all layers of one device, in their order. Layers that keep a factor have it already.

    The state of the layers is updated, and directions of the two-sided region take the place of the averaged gradients.
    """
    solution = Solution([[] for _ in given.contexts])
    by_solver: dict[Solver, list[int]] = {}
    for i, context in enumerate(given.contexts):
        by_solver.setdefault(context.config.method, []).append(i)
    for solver, members in by_solver.items():
        solver.solve(solution, members, given)
    return solution
