"""Layers that are given one input keep one second moment, and one factor: q, k and v, or the halves of a gated MLP.

Such layers gather into one tensor (:mod:`lnb.layers.sharing`). Where their settings are the same too, what is averaged and made
of it is the same to the bit, and they hold views of the same entries of an arena. That changes no number. Which layers share is
seen anew at every refresh: one that gathers something else, or nothing since it is frozen, gets a copy for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lnb.context import LayerContext
from lnb.statistics.arenas import Arenas, State
from lnb_kernels._captured import is_capturing

SHARED = ("second_moment", "second_moment_step", "factor", "factor_mean")
"""The keys of the state that layers of one input share."""


@dataclass(eq=False)
class Sharing:
    """Layers of a refresh that keep one second moment, and the factor that is made of it; usually one.

    Attributes:
        contexts: the layers, in their order.
    """

    contexts: list[LayerContext]

    @property
    def first(self) -> LayerContext:
        """The layer whose moments and settings stand for all."""
        return self.contexts[0]

    @property
    def moments(self) -> Tensor:
        """What they gathered, ``[groups, blocks, size+1, size+1]``."""
        assert self.first.moments is not None
        return self.first.moments

    @property
    def state(self) -> State:
        """The state of the first."""
        return self.first.state

    @property
    def others(self) -> list[State]:
        """The states of the others."""
        return [context.state for context in self.contexts[1:]]


def shared(contexts: Iterable[LayerContext], arenas: Arenas) -> list[Sharing]:
    """The layers with second moments of this step, those together that gathered one memory under the same settings.

    They must also hold the same so far: nothing, one memory, or, as after a state was loaded or moved, equal numbers. These are
    compared once, for which the host waits.
    """
    found: list[Sharing] = []
    alike: dict[object, list[Sharing]] = {}
    for context in contexts:
        if context.moments is None:
            continue
        kind = _place(context.moments), context.config, context.ridge, context.with_bias
        candidates = alike.setdefault(kind, []) if context.layer.columns is None else []
        for sharing in candidates:
            if hold_the_same(sharing.state, context.state, arenas):
                sharing.contexts.append(context)
                break
        else:
            candidates.append(Sharing([context]))
            found.append(candidates[-1])
    return found


def layers_of(sharings: Iterable[Sharing]) -> list[LayerContext]:
    """All their layers."""
    return [context for sharing in sharings for context in sharing.contexts]


def hold_the_same(one: State, other: State, arenas: Arenas) -> bool:
    """Whether both states hold nothing, one memory, or equal numbers under every key of :data:`SHARED`."""
    pairs = [(one.get(key), other.get(key)) for key in SHARED]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    apart = [(a, b) for a, b in pairs if a is not None and b is not None and _place(a) != _place(b)]
    return not apart or (not arenas.are_apart(one, other) and _equal(apart, one, other, arenas))


def _equal(pairs: Sequence[tuple[Tensor, Tensor]], one: State, other: State, arenas: Arenas) -> bool:
    if pairs[0][0].is_meta or is_capturing():
        return False  # nothing to read, or no host that may wait: the next refresh outside looks again
    kinds = all((a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) for a, b in pairs)
    if kinds and all(torch.equal(a, b) for a, b in pairs):
        return True
    arenas.note_apart(one, other)
    return False


def _place(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors of one memory have in common, also on devices without addresses."""
    storage = tensor.untyped_storage()
    return storage._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
