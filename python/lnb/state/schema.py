"""The schema of the state, stated once for every key: its owner, shape and dtype, and when it exists.

Sizes (:mod:`lnb.planning.memory`), what a saved state must hold (:mod:`lnb.state.checks`), and what loading may round
(:mod:`lnb.state.serialization`) are derived from :data:`SCHEMA`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lnb.config import Config
from lnb.context import moment_blocks
from lnb.layers.capture import statistics_dtype
from lnb.layers.claimed import Layer
from lnb.master import has_master
from lnb.statistics.factored import block_count
from lnb.statistics.input_sizes import keeps_input_size
from lnb_kernels.scaling import sum_dtype

Shape = tuple[int, ...]
When = Callable[[Tensor, Layer | None, Config], bool]

OPTIMIZER_ENTRIES = ("lnb_format", "lnb_step", "lnb_settings", "lnb_plan")
"""Plain values of the optimizer, which stand beside ``state`` and ``param_groups`` in a state dict: the number of the format,
steps made, settings that decide what the state means, and what was chosen for single layers. They take no memory of a
device."""


class Owner(enum.Enum):
    """The owner of an entry, in whose state it is held."""

    PARAMETER = "every parameter's own"
    LAYER = "one for a layer, in the state of its weight"


class Kind(enum.Enum):
    """The precision in which an entry is kept."""

    COUNT = "float32, also where statistics are in float64: a count of steps"
    STATISTIC = "float64 for parameters in float64, float32 for all others"
    WIDE = "float64 where the device has it: squares of gradients, and what is compared with them"
    MASTER = "float32"

    def dtype(self, parameter: Tensor) -> torch.dtype:
        """The dtype of such an entry of ``parameter``."""
        if self is Kind.STATISTIC:
            return statistics_dtype(parameter.dtype)
        return sum_dtype(parameter.device) if self is Kind.WIDE else torch.float32


@dataclass(frozen=True)
class Form:
    """The shape of an entry.

    Args:
        planned: with given settings.
        allowed: all that a saved state may have, whatever the settings were; None for the planned one alone.
    """

    planned: Callable[[Tensor, Layer | None, Config], Shape]
    allowed: Callable[[Tensor, Layer], list[Shape]] | None = None


@dataclass(frozen=True)
class Entry:
    """One key of the state of a parameter.

    Args:
        owner: the parameter, or the layer whose weight it is.
        kind: its precision.
        form: its shape.
        when: whether a step of the parameter makes it, given a layer whose weight and bias both move.
        required: whether a state without it is incomplete. Others are made anew where they are missing, or depend on what
            was frozen in a step.
    """

    owner: Owner
    kind: Kind
    form: Form
    when: When
    required: bool = True


def _of_layer(layer: Layer | None) -> Layer:
    assert layer is not None, "entries of layers are asked for with the layer"
    return layer


def _block_form(outputs: bool, ones: int) -> Form:
    """Diagonal blocks ``[groups, blocks, size, size]`` of inputs or outputs, with ``ones`` rows more for the constant 1."""

    def side_of(owner: Layer) -> int:
        return owner.shape[1] if outputs else owner.shape[2]

    def cut(owner: Layer, count: int) -> Shape:
        size = side_of(owner) // count + ones
        return owner.shape[0], count, size, size

    def planned(parameter: Tensor, owner: Layer | None, config: Config) -> Shape:
        layer = _of_layer(owner)
        count = block_count(side_of(layer), config.block_size) if outputs else moment_blocks(layer, config)
        return cut(layer, count)

    def allowed(parameter: Tensor, owner: Layer) -> list[Shape]:
        side = side_of(owner)
        return [cut(owner, count) for count in range(1, side + 1) if side % count == 0]

    return Form(planned, allowed)


_NUMBER = Form(lambda parameter, layer, config: ())
_AS_PARAMETER = Form(lambda parameter, layer, config: shape_in_state(parameter, layer))
_PER_ROW = Form(lambda parameter, layer, config: _of_layer(layer).shape[:2])
_PER_INPUT = Form(lambda parameter, layer, config: _of_layer(layer).shape[::2])
_MATRIX = Form(
    lambda parameter, layer, config: (*_of_layer(layer).shape[:2], _of_layer(layer).d_in + has_bias(_of_layer(layer))),
    lambda parameter, layer: [(*layer.shape[:2], layer.d_in), (*layer.shape[:2], layer.d_in + 1)],
)
_INPUT_BLOCKS, _INPUT_BLOCKS_WITH_ONES = _block_form(outputs=False, ones=0), _block_form(outputs=False, ones=1)
_OUTPUT_BLOCKS = _block_form(outputs=True, ones=0)


def shape_in_state(parameter: Tensor, layer: Layer | None) -> Shape:
    """The shape of what is kept like ``parameter``; of a transposed weight, that of its stand-in (:mod:`lnb.routes.turned`)."""
    turned = layer is not None and layer.transposed and parameter is layer.weight
    return tuple(reversed(parameter.shape)) if turned else tuple(parameter.shape)


def has_bias(layer: Layer) -> bool:
    """Whether the bias is a column of the layer's matrices."""
    return layer.bias is not None


def _always(parameter: Tensor, layer: Layer | None, config: Config) -> bool:
    return True


def _if_given(parameter: Tensor, layer: Layer | None, config: Config) -> bool:
    """Entries that depend on what the user passes to a step: no plan counts on them."""
    return False


def _if(setting: Callable[[Config], bool]) -> When:
    return lambda parameter, layer, config: setting(config)


def _of_others_squares(parameter: Tensor, layer: Layer | None, config: Config) -> bool:
    return layer is None and config.others == "adamw"


def _of_bias_columns(parameter: Tensor, layer: Layer | None, config: Config) -> bool:
    return config.factored and has_bias(_of_layer(layer))


_two_sided = _if(lambda config: config.factored and config.region.two_sided)
_two_sided_average = _if(lambda config: config.factored and config.region.two_sided and config.b_s > 0)
_second_moment = _if(lambda config: config.keeps_second_moment)
_feature_moments = _if(lambda config: config.keeps_feature_moments)
_agreement = _if(lambda config: config.damping == "agreement")
_gain = _if(lambda config: config.damping == "gain")
_bounded = _if(lambda config: config.max_relative_change is not None)

_P, _L = Owner.PARAMETER, Owner.LAYER
SCHEMA: dict[str, Entry] = {
    "step": Entry(_P, Kind.COUNT, _NUMBER, _always),
    "momentum": Entry(_P, Kind.STATISTIC, _AS_PARAMETER, _always),
    "master": Entry(_P, Kind.MASTER, _AS_PARAMETER, lambda parameter, layer, config: has_master(parameter, config)),
    "gradient_square": Entry(_P, Kind.STATISTIC, _AS_PARAMETER, _of_others_squares, required=False),
    "last_step": Entry(
        _P,
        Kind.STATISTIC,
        _AS_PARAMETER,
        lambda p, layer, config: layer is not None and config.damping == "gain",
        False,
    ),
    "factor": Entry(_L, Kind.STATISTIC, _INPUT_BLOCKS, _if(lambda config: config.factored)),
    "factor_mean": Entry(_L, Kind.STATISTIC, _PER_INPUT, _of_bias_columns, required=False),
    "output_factor": Entry(_L, Kind.STATISTIC, _OUTPUT_BLOCKS, _two_sided),
    "output_moment": Entry(_L, Kind.STATISTIC, _OUTPUT_BLOCKS, _two_sided_average),
    "second_moment": Entry(_L, Kind.STATISTIC, _INPUT_BLOCKS_WITH_ONES, _second_moment),
    "second_moment_step": Entry(_L, Kind.COUNT, _NUMBER, _second_moment),
    "mean": Entry(_L, Kind.STATISTIC, _PER_INPUT, _feature_moments),
    "mean_square": Entry(_L, Kind.STATISTIC, _PER_INPUT, _feature_moments),
    "moment_step": Entry(_L, Kind.COUNT, _NUMBER, _feature_moments),
    "direction": Entry(_L, Kind.STATISTIC, _MATRIX, _if(lambda config: config.keeps_direction)),
    "row_square": Entry(_L, Kind.WIDE, _PER_ROW, _agreement, required=False),
    "independent_square": Entry(_L, Kind.WIDE, _NUMBER, _agreement, required=False),
    "radius": Entry(_L, Kind.WIDE, _NUMBER, _agreement, required=False),
    "coherence": Entry(_L, Kind.WIDE, _NUMBER, _agreement, required=False),
    "loss_count": Entry(_L, Kind.WIDE, _NUMBER, _if_given, required=False),
    "loss_mean": Entry(_L, Kind.WIDE, _NUMBER, _if_given, required=False),
    "loss_square": Entry(_L, Kind.WIDE, _NUMBER, _if_given, required=False),
    "fraction": Entry(_L, Kind.WIDE, _NUMBER, _gain, required=False),
    "last_slope": Entry(_L, Kind.WIDE, _NUMBER, _gain, required=False),
    "weight_norm": Entry(_L, Kind.WIDE, _NUMBER, _bounded, required=False),
    "growth": Entry(_L, Kind.WIDE, _NUMBER, _bounded, required=False),
    "input_size": Entry(_L, Kind.WIDE, _NUMBER, _if(keeps_input_size), required=False),
}
"""Every key of the state of a parameter."""


def planned_entries(
    parameter: Tensor, layer: Layer | None, config: Config, weight: bool = True
) -> Iterator[tuple[str, Entry, Shape]]:
    """What the first steps of a parameter make: the keys, and the shapes.

    Args:
        parameter: of the model, or added to the optimizer.
        layer: the layer that it moves with, if there is one.
        config: the layer's settings; of any other parameter the optimizer's.
        weight: whether it is the layer's weight, which has the layer's own entries.
    """
    for key, entry in SCHEMA.items():
        of_layer = entry.owner is Owner.LAYER
        if of_layer and (layer is None or not weight):
            continue
        if entry.when(parameter, layer, config):
            yield key, entry, entry.form.planned(parameter, layer, config)


def planned_bytes(parameter: Tensor, layer: Layer | None, config: Config, weight: bool = True) -> int:
    """Bytes of all :func:`planned_entries`."""
    return sum(
        entry.kind.dtype(parameter).itemsize * math.prod(shape)
        for _, entry, shape in planned_entries(parameter, layer, config, weight)
    )


def required_keys(parameter: Tensor, layer: Layer | None, config: Config) -> set[str]:
    """What the state of a parameter that has made a step holds at least.

    Args:
        parameter: of the model, or added to the optimizer.
        layer: the layer whose weight it is, if it is one.
        config: the layer's settings; of any other parameter the optimizer's.
    """
    return {key for key, entry, _ in planned_entries(parameter, layer, config) if entry.required}


def allowed_shapes(key: str, parameter: Tensor, layer: Layer | None, config: Config) -> list[Shape]:
    """The shapes that state ``key`` of ``parameter`` may have, whatever the settings; none where it has no such state."""
    entry = SCHEMA.get(key)
    if entry is None or (entry.owner is Owner.LAYER and layer is None):
        return []
    if entry.form.allowed is None:
        return [entry.form.planned(parameter, layer, config)]
    return entry.form.allowed(parameter, _of_layer(layer))


def is_rounded(key: str) -> bool:
    """Whether the entry follows the precision of its parameter, when that changes or another one's state is loaded."""
    return key not in SCHEMA or SCHEMA[key].kind not in (Kind.COUNT, Kind.WIDE)


def saved_settings(config: Config) -> dict[str, Any]:
    """The settings that decide what a layer's state means."""
    region = config.trust_region if config.region.needs_factor else "any other"
    return {"solver": config.solver, "trust_region": region}
