"""How ``metric h = g~`` is solved: one file for each solver, with what it computes, keeps and costs.

The metric of a layer is ``X~'X~/N + ridge diag(1..1, 0)`` with ``x~ = [x 1]``. :mod:`lnb.solvers.built_in` lists the solvers
that the package brings; they are registered as soon as ``lnb`` is imported. A solver of your own is a subclass of
:class:`Solver`, made known by :func:`register`::

    class Exact(Solver):
        name = "exact"
        keeps_feature_moments = False

        def direction(self, context, gradient, verdict):
            ...

    lnb.solvers.register(Exact())
    lnb.LNB(model, preset="paper", solver="exact")

This module imports no solver: :class:`lnb.config.Config` asks it for names and traits, and solvers work with settings.
"""

from __future__ import annotations

from lnb.registry import Registry
from lnb.solvers.base import Solver

__all__ = ["Solver", "names", "register", "solver_named"]

_SOLVERS = Registry("solver", Solver, "lnb.solvers.Solver")


def register(solver: Solver) -> None:
    """Make a solver known by its name, as a value of the setting ``solver``.

    Raises:
        TypeError: ``solver`` is no :class:`Solver`.
        ValueError: its name is no text, or another solver has it.
    """
    _SOLVERS.add(solver)


def names() -> tuple[str, ...]:
    """The names of all solvers."""
    return tuple(_SOLVERS.known)


def solver_named(name: str) -> Solver:
    """The solver of that name, which :func:`names` has."""
    return _SOLVERS.known[name]
