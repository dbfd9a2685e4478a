"""The second moments that an optimizer tracks: what :mod:`lnb.moments` reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lnb.layers.claimed import Layer


@dataclass(frozen=True)
class Tracked:
    """One claimed layer of an optimizer.

    Attributes:
        layer: the layer.
        decay: of its average, ``b_s``; None where it is unknown.
        samples: how many a refresh reads, as on its first step; None before it.
        state: of its weight. ``second_moment`` ``[groups, blocks, size+1, size+1]`` is an average of ``E[x~ x~']`` from zero,
            whose last entries are therefore ``1 - b_s^t`` after ``t = second_moment_step`` refreshes.
    """

    layer: Layer
    decay: float | None
    samples: float | None
    state: Mapping[str, Tensor]
