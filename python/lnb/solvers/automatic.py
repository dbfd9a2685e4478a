"""The solver ``"auto"``: for each layer the cheapest of the others, once the number of samples of its first step is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lnb.solvers import solver_named
from lnb.solvers.base import Solver
from lnb.solvers.cholesky import Cholesky
from lnb.solvers.conjugate_gradients import ConjugateGradients

if TYPE_CHECKING:
    from lnb.config import Config
    from lnb.layers.claimed import Layer


class Automatic(Solver):
    """Stands for :class:`Cholesky` where second moments are remembered or the trust region needs a factor.

    For other settings a layer is solved by conjugate gradients until :func:`lnb.planning.solver_choice.choose_solver`
    decides; so it computes, keeps and costs nothing of its own.
    """

    name = "auto"
    chooses = True

    def acting(self, config: Config) -> Solver:
        """The factor, or conjugate gradients."""
        return solver_named(Cholesky.name) if config.region.needs_factor or config.averaged else _UNDECIDED


class _Undecided(ConjugateGradients):
    def describe(self, layer: Layer, config: Config) -> tuple[str, str]:
        return super().describe(layer, config)[
            0
        ], "auto: the first backward pass shows how many samples there are, which decides"


_UNDECIDED = _Undecided()
