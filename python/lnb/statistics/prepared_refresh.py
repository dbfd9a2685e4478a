"""Refreshes of prepared steps: all layers that are due in one call of the CPU's kernels, from the addresses of their states.

The arithmetic is that of :mod:`lnb.statistics.refresh`, which takes the layers that this does not serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from lnb.config import Config
from lnb.context import LayerContext
from lnb.statistics.arenas import Arenas, State
from lnb.statistics.orthogonalize import QUINTIC, STEPS
from lnb.statistics.refresh import reserve
from lnb.statistics.shared_state import Sharing, shared
from lnb_kernels.step_tables import StepMoment, StepTables

_KEPT = ("second_moment", "second_moment_step", "factor", "output_moment", "output_factor")
_STATES = (*_KEPT, "factor_mean")


@dataclass(eq=False)
class Refresh:
    """A refresh that the kernels made of all layers that were due, to be made again of the same states.

    Attributes:
        moments: of each layer, as the kernels took them.
        settings: each layer's config and ridge, whether its bias takes part, and whether it sees data.
        states: of each layer.
        held: what these held under each of ``_STATES``, None for nothing.
        addresses: where that lay.
        first: of each layer, the first one that gathered the same memory.
        strides: of what each gathered.
    """

    moments: list[StepMoment]
    settings: list[tuple[Config, float, bool, bool]]
    states: list[State]
    held: list[Tensor | None]
    addresses: list[int]
    first: list[int]
    strides: list[tuple[int, ...]]

    @classmethod
    def of(cls, contexts: Sequence[LayerContext], moments: list[StepMoment], gathered: Sequence[Tensor]) -> Refresh:
        """The refresh of ``contexts`` by ``moments``."""
        states = [context.state for context in contexts]
        held = [state.get(key) for state in states for key in _STATES]
        settings = [(context.config, *_settings_of(context)) for context in contexts]
        strides = [own.stride() for own in gathered]
        return cls(moments, settings, states, held, _addresses(held), _first(gathered), strides)

    def serves(self, contexts: Sequence[LayerContext], gathered: Sequence[Tensor]) -> bool:
        """Whether the layers have the settings that they had, their states the tensors that they held, where these lay, and
        the same ones of them gathered one memory: then the same layers share the same entries of the arenas."""
        for context, state, (config, *settings) in zip(contexts, self.states, self.settings, strict=True):
            if context.state is not state or context.config is not config or context.squarable is not None:
                return False
            if settings != list(_settings_of(context)):
                return False
        held = [state.get(key) for state in self.states for key in _STATES]
        if any(one is not other for one, other in zip(held, self.held, strict=True)):
            return False
        if _addresses(held) != self.addresses or _first(gathered) != self.first:
            return False
        if [own.stride() for own in gathered] != self.strides:
            return False
        return all(_is_like(own, x.second_moment) for own, x in zip(gathered, self.moments, strict=True))


def refresh_prepared(
    tables: StepTables, due: Mapping[LayerContext, int], arenas: Arenas, known: dict[tuple[int, ...], Refresh]
) -> list[LayerContext]:
    """Make new factors for the layers that the kernels take, and return the other layers.

    They take layers whose state is complete, in the blocks of this step's second moments: a layer's first refresh and one in
    other blocks are left to the general form, as are layers with inputs whose squares are too large.

    Args:
        tables: of the step, after ``average``.
        due: layers, each with its place in the tables; those with second moments of this step are refreshed.
        arenas: where the states live.
        known: refreshes with these tables before, by the layers' places; this one is added.
    """
    contexts, places = list(due), tuple(due.values())
    gathered = [context.moments for context in contexts if context.moments is not None]
    is_whole = len(gathered) == len(contexts)
    former = known.get(places) if is_whole else None
    if former is not None and former.serves(contexts, gathered):
        tables.refresh(former.moments, [own.contiguous() for own in gathered], QUINTIC, STEPS)
        return []
    left, moments = _refresh_anew(tables, due, arenas)
    if is_whole and not left:
        known[places] = Refresh.of(contexts, [moments[context] for context in contexts], gathered)
    return left


def _refresh_anew(
    tables: StepTables, due: Mapping[LayerContext, int], arenas: Arenas
) -> tuple[list[LayerContext], dict[LayerContext, StepMoment]]:
    """The layers that the kernels do not take, and what they take for the others."""
    taken: list[Sharing] = []
    left = [context for context in due if context.moments is None]
    for sharing in shared(due, arenas):
        gathered = sharing.moments.contiguous()
        found = [_moment(due[context], context, False) for context in sharing.contexts]
        if all(moment is not None and tables.refreshes(moment, gathered) for moment in found):
            taken.append(sharing)
        else:
            left += sharing.contexts
    moments: dict[LayerContext, StepMoment] = {}
    if taken:
        reserve(taken, arenas)  # one memory for those that share, and for no others
        for sharing in taken:
            for context in sharing.contexts:
                moments[context] = cast(StepMoment, _moment(due[context], context, context is not sharing.first))
        gathered_of = [cast(Tensor, context.moments).contiguous() for context in moments]
        tables.refresh(list(moments.values()), gathered_of, QUINTIC, STEPS)
    return left, moments


def _moment(place: int, context: LayerContext, follows: bool) -> StepMoment | None:
    """The tensors that the kernels read and write for a layer; None where they do not take its state or settings."""
    config, state, gathered = context.config, context.state, context.moments
    assert gathered is not None
    if not all(key in state for key in _KEPT) or config.ridge_mode != "relative" or context.squarable is not None:
        return None
    average, counted, factor, output, root = (state[key] for key in _KEPT)
    mean: Tensor | None = state.get("factor_mean")
    if average.shape != gathered.shape or average.dtype != gathered.dtype or context.with_bias != (mean is not None):
        return None
    if factor.shape[-1] + 1 != gathered.shape[-1] or output.shape != root.shape:
        return None
    return StepMoment(
        place,
        average,
        counted,
        factor,
        mean,
        output,
        root,
        config.b_s,
        context.ridge,
        config.sample_ridge,
        context.data_inputs,
        config.sample_every,
        config.output_ridge,
        follows,
        context.layer.sees_data,
    )


def _settings_of(context: LayerContext) -> tuple[float, bool, bool]:
    return context.ridge, context.with_bias, context.layer.sees_data


def _addresses(held: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in held]


def _first(gathered: Sequence[Tensor]) -> list[int]:
    """For each memory, the place of the first one that is the same."""
    places: dict[int, int] = {}
    return [places.setdefault(tensor.data_ptr(), i) for i, tensor in enumerate(gathered)]


def _is_like(gathered: Tensor, average: Tensor) -> bool:
    return type(gathered) is Tensor and gathered.shape == average.shape and gathered.dtype == average.dtype
