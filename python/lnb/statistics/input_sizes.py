"""The size of data that layers see, which a refresh knows and :mod:`lnb.weight_bound` needs in every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lnb.config import Config
from lnb.context import LayerContext
from lnb.statistics.arenas import Arenas, Selection
from lnb_kernels.scaling import sum_dtype


def keeps_input_size(config: Config) -> bool:
    """Whether the settings of a layer ask for it."""
    return config.region.two_sided and config.factored and config.max_relative_change is not None


def select_input_sizes(contexts: Sequence[LayerContext], arenas: Arenas) -> Selection | None:
    """The ``input_size`` of layers, ``[layers]``; None where no setting asks for it.

    State of a layer's weight: ``input_size`` ``[]``, the root of the mean diagonal of the metric of its inputs, over all groups,
    0 for not known. The diagonal is that of :func:`lnb.statistics.running.mean_diagonals`. Refreshes write it of layers that see
    data (:attr:`lnb.layers.claimed.Layer.sees_data`).
    """
    if not any(keeps_input_size(context.config) for context in contexts):
        return None
    device = contexts[0].layer.weight.device
    like = torch.empty((), dtype=sum_dtype(device), device=device)
    states = [context.state for context in contexts]
    return arenas.select("input_size", states, [()] * len(states), like)
