"""The op's lists as entries, one per parameter: what the reference and the CUDA kernel both start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

WRITTEN = ("params", "masters", "averages", "squares", "finite")
LISTS = (*WRITTEN, "directions", "row_scales", "gradients")
"""Lists of tensors of the op, in the order of its arguments."""


class Entry(NamedTuple):
    """One parameter: a weight has ``row_scales``, an other parameter an ``average``, and a bias neither."""

    param: Tensor
    master: Tensor | None
    y: Tensor  # direction, or gradient of an other parameter
    row_scales: Tensor | None
    average: Tensor | None
    square: Tensor | None
    place: int
    number: int  # among the other parameters
    group: int

    @property
    def theta(self) -> Tensor:
        """What the step is added to."""
        return self.param if self.master is None else self.master


def entries_of(
    params: Sequence[Tensor],
    masters: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    directions: Sequence[Tensor],
    row_scales: Sequence[Tensor],
    gradients: Sequence[Tensor],
    mastered: Sequence[int],
    places: Sequence[int],
    groups: Sequence[int],
) -> list[Entry]:
    """The entries: weights, biases, then other parameters, as they stand in ``params``.

    Args:
        mastered: for each parameter, which of ``masters`` is its own; -1 for none.
    """
    owned = [None if k < 0 else masters[k] for k in mastered]
    weights, layers = len(row_scales), len(directions)
    made = [
        Entry(params[i], owned[i], directions[i], row_scales[i] if i < weights else None, None, None, places[i], 0, groups[i])
        for i in range(layers)
    ]  # fmt: skip
    made += [
        Entry(params[i], owned[i], gradients[k], None, averages[k], squares[k], places[i], k, groups[i])
        for k, i in enumerate(range(layers, len(params)))
    ]
    return made
