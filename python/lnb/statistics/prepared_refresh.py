"""Refreshes of prepared steps: all layers that are due in one call of the CPU's kernels, from the addresses of their states.

The arithmetic is that of :mod:`lnb.statistics.refresh`, which takes the layers that this does not serve.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lnb.context import LayerContext
from lnb.statistics.arenas import Arenas
from lnb.statistics.orthogonalize import QUINTIC, STEPS
from lnb.statistics.refresh import reserve
from lnb.statistics.shared_state import Sharing, shared
from lnb_kernels.step_tables import StepMoment, StepTables

_KEPT = ("second_moment", "second_moment_step", "factor", "output_moment", "output_factor")


def refresh_prepared(tables: StepTables, due: Mapping[LayerContext, int], arenas: Arenas) -> list[LayerContext]:
    """Make new factors for the layers that the kernels take, and return the other layers.

    They take layers whose state is complete, in the blocks of this step's second moments: a layer's first refresh and one in
    other blocks are left to the general form, as are layers with inputs whose squares are too large.

    Args:
        tables: of the step, after ``average``.
        due: layers, each with its place in the tables; those with second moments of this step are refreshed.
        arenas: where the states live.
    """
    taken: list[Sharing] = []
    left = [context for context in due if context.moments is None]
    for sharing in shared(due, arenas):
        found = [_moment(due[context], context, False) for context in sharing.contexts]
        if all(moment is not None and tables.refreshes(moment) for moment in found):
            taken.append(sharing)
        else:
            left += sharing.contexts
    if taken:
        reserve(taken, arenas)  # one memory for those that share, and for no others
        moments = [
            _moment(due[context], context, context is not sharing.first)
            for sharing in taken
            for context in sharing.contexts
        ]
        tables.refresh([moment for moment in moments if moment is not None], QUINTIC, STEPS)
    return left


def _moment(place: int, context: LayerContext, follows: bool) -> StepMoment | None:
    """The tensors that the kernels read and write for a layer; None where they do not take its state or settings."""
    config, state, gathered = context.config, context.state, context.moments
    assert gathered is not None
    if not all(key in state for key in _KEPT) or config.ridge_mode != "relative" or context.squarable is not None:
        return None
    average, counted, factor, output, root = (state[key] for key in _KEPT)
    mean: Tensor | None = state.get("factor_mean")
    if average.shape != gathered.shape or context.with_bias != (mean is not None):
        return None
    if factor.shape[-1] + 1 != gathered.shape[-1] or output.shape != root.shape:
        return None
    return StepMoment(
        place,
        gathered if gathered.is_contiguous() else gathered.contiguous(),
        average,
        counted,
        factor,
        mean,
        output,
        root,
        config.b_s,
        context.ridge,
        config.sample_ridge,
        config.sample_every,
        follows,
    )
