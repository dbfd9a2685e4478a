"""The schedule of refreshes: which layers gather second moments on which steps, and from which samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lnb.config import Config
from lnb.layers.claimed import Layer
from lnb.statistics.factored import block_count
from lnb.statistics.orthogonalize import INVERSE_ROOT_FLOPS

_GOLDEN = (math.sqrt(5) - 1) / 2
LEAST_SLICE = {"cpu": 2**27}
LEAST_SLICE_ELSEWHERE = 2**38
"""Operations of a slice of a refresh. Whatever its size, a slice costs a CPU about a millisecond of calls, and an accelerator
hundreds of launches; smaller slices would take less time than that."""


def is_refresh_step(index: int, refresh_every: int, phase: int = 0) -> bool:
    """Whether step ``index`` (from 0) gathers second moments: every ``refresh_every``-th, and more often at first.

    Features change fastest in the first steps, so these are refreshed at the powers of two too: 0, 1, 2, 4, 8, ...

    Args:
        index: of the step.
        refresh_every: steps from one gathering to the next.
        phase: in ``[0, refresh_every)``, by how many steps the layer's gatherings after the first ``refresh_every`` steps
            come later.
    """
    if index < refresh_every:
        return index & (index - 1) == 0
    return index % refresh_every == phase


def refresh_phases(layers: Sequence[tuple[Layer, Config]]) -> list[int]:
    """The phase of each layer's refreshes, which spreads them so that no step has many.

    Layers that are staggered are cut, in their order, into at most ``refresh_every`` slices of about equal cost. The
    phases depend on the layers alone, so a resumed run has the same ones.
    """
    phases = [0] * len(layers)
    cycles: dict[tuple[int, torch.device], list[int]] = {}
    for i, (layer, config) in enumerate(layers):
        if config.staggered and config.refresh_every > 1:
            cycles.setdefault((config.refresh_every, layer.weight.device), []).append(i)
    for (every, device), members in cycles.items():
        costs = [refresh_cost(*layers[i]) for i in members]
        least = LEAST_SLICE.get(device.type, LEAST_SLICE_ELSEWHERE)
        slices = max(1, min(every, len(members), int(sum(costs) // least)))
        done = 0.0
        for i, own in zip(members, costs, strict=True):
            place = (done + own / 2) / sum(costs)  # the middle of its share of the total
            phases[i] = int(place * slices) * every // slices
            done += own
    return phases


def refresh_cost(layer: Layer, config: Config) -> float:
    """Operations of a layer's refresh: the factor, and in two-sided regions the outputs' moment and root."""
    groups, rows, d_in = layer.shape
    size = d_in // layer.input_blocks(config.block_size)
    cost = 2.0 * d_in * size**2
    if config.region.two_sided:
        side = rows // block_count(rows, config.block_size)
        cost += INVERSE_ROOT_FLOPS * rows * side**2 + 2.0 * rows * d_in * (size + side)
    return groups * cost


def sample_start(index: int) -> float:
    """Where sampling starts on step ``index``, in [0, 1).

    Multiples of the golden ratio modulo 1 fill the interval as evenly as any sequence does: over the steps every sample counts
    equally often, and a run that is resumed reads the same samples.
    """
    return index * _GOLDEN % 1.0
