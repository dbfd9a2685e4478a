"""What the stages of a step, the reports and the planner ask of a solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from lnb.solvers.solution import Solution, SolverInputs

if TYPE_CHECKING:
    from lnb.config import Config
    from lnb.context import LayerContext
    from lnb.layers.capture import Samples
    from lnb.layers.claimed import Layer
    from lnb.planning.pricing import Pricing
    from lnb.verdict import Verdict


class Solver:
    """A way to solve ``metric h = g~`` for the layers of a step.

    The traits tell what a step gathers and what the state holds; :mod:`lnb.state.schema` has the shapes. A subclass implements
    :meth:`direction`, which solves one layer; or :meth:`solve`, where solving several layers in one call is faster.

    Attributes:
        name: the value of the setting ``solver``.
        factored: whether the metric is kept as a factor from one refresh to the next (state ``factor``, ``factor_mean``), from
            which the trust region makes directions.
        keeps_inputs: whether it uses the inputs of the step's forward passes, kept until the step, in place of their second
            moment.
        averages_moments: whether the state holds the averaged second moment where the settings remember it (``b_s``,
            ``refresh_every``): state ``second_moment``, ``second_moment_step``.
        keeps_direction: whether the state holds the previous solution, ``direction``.
        keeps_feature_moments: whether the state holds the averages of the features' means and mean squares: ``mean``,
            ``mean_square``, ``moment_step``.
        always_fits: whether ``"auto"`` considers it whatever memory is left: one solver has to be available.
        chooses: whether it stands for one of the others, which is chosen for each layer once it is known how many
            samples its first step has.
    """

    name: ClassVar[str]
    factored: ClassVar[bool] = False
    keeps_inputs: ClassVar[bool] = False
    averages_moments: ClassVar[bool] = False
    keeps_direction: ClassVar[bool] = False
    keeps_feature_moments: ClassVar[bool] = True
    always_fits: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    # -- settings -----------------------------------------------------------------------------------------------------

    def acting(self, config: Config) -> Solver:
        """The solver that these settings work with: this one, unless it stands for others."""
        return self

    def check(self, config: Config) -> None:
        """Require settings that it can work with, by a ``ValueError`` that names the setting, its value and what is allowed."""

    def by_rows(self, config: Config) -> bool:
        """Whether the solution of some rows of a layer does not depend on the others: then shards can be solved apart."""
        return True

    def suits(self, layer: Layer, config: Config, samples: Samples, dual: bool) -> str | None:
        """Why it suits a layer whose solver is still to be chosen, in words; None where it does not, which is so for solvers
        from outside of the package.

        Args:
            layer: the layer.
            config: its settings.
            samples: of one step.
            dual: whether the ridge is positive in every parameter group.
        """
        return None

    # -- the step -----------------------------------------------------------------------------------------------------

    def solve(self, solution: Solution, members: Sequence[int], given: SolverInputs) -> None:
        """Enter the directions of some layers into ``solution``. Here: one layer at a time, so that only one has its copies in
        memory.

        Args:
            solution: of all layers.
            members: the places of the layers to solve.
            given: all layers of one device. Their statistics are up to date and only read; directions may take the place of
                the averaged gradients.
        """
        for i in members:
            context = given.contexts[i]
            gradient = joined_gradient(context, given.averages)
            solution.parts[i] = split_direction(context, self.direction(context, gradient, given.verdict), gradient)

    def direction(self, context: LayerContext, gradient: Tensor, verdict: Verdict) -> Tensor:
        """The direction ``h`` of one layer, of the shape of ``gradient``; zero for a batch without samples.

        Args:
            context: the layer's statistics, its settings and its state. A solver changes only the state that it keeps for itself.
            gradient: ``g~``, ``[groups, rows, columns]``: the bias, where it moves, is the last column.
            verdict: whether state may change.
        """
        raise NotImplementedError(f"solver {self.name!r} defines neither direction() nor solve()")

    # -- what it costs ------------------------------------------------------------------------------------------------

    def describe(self, layer: Layer, config: Config) -> tuple[str, str]:
        """How a layer is solved, and why so, in words."""
        return self.name, ""

    def step_flops(self, layer: Layer, config: Config) -> int:
        """Operations of one step's solution, without those that depend on the number of samples."""
        return 0

    def refresh_flops(self, layer: Layer, config: Config) -> int:
        """Operations of one refresh, without the product over samples."""
        return 0

    def sample_flops(self, layer: Layer, config: Config) -> int:
        """Operations per sample of a step, beside those of the second moment."""
        return 0

    def seconds(self, price: Pricing) -> tuple[float, float]:
        """Predicted time of one refresh, and of one step's solution; zeros where nothing is known."""
        return 0.0, 0.0


def joined_gradient(context: LayerContext, averages: dict[nn.Parameter, Tensor]) -> Tensor:
    """``g~`` of a layer as one matrix, ``[groups, rows, columns]``."""
    return context.layer.join([averages[parameter] for parameter in context.parameters])


def split_direction(context: LayerContext, solution: Tensor, gradient: Tensor) -> list[Tensor]:
    """The direction that the trust region makes of a solution, one tensor for each moving parameter.

    Args:
        context: the layer.
        solution: ``h``, ``[groups, rows, columns]``.
        gradient: ``g~``, of the same shape.
    """
    return context.layer.split(context.config.region.of_solution(solution, gradient))
