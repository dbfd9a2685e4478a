"""What the state of a parameter consists of: which tensors, of which shapes, and which of them come together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lnb.blocks import Block
from lnb.config import Config
from lnb.master import has_master
from lnb_kernels import multi_tensor

COUNTS = ("step", "moment_step", "second_moment_step")
_NUMBERS = ("weight_norm", "growth", "fraction", "last_slope", "radius", "independent_square")
WIDE = ("row_square", *_NUMBERS)
"""Kept in float64 whatever the parameter is: squares of gradients, and what is compared with them."""
_DTYPES = (torch.float32, torch.float64)

Entry = tuple[nn.Parameter, dict[str, Any]]


def required_keys(parameter: nn.Parameter, block: Block | None, config: Config) -> set[str]:
    """What the state of a parameter that has made a step holds at least.

    Args:
        parameter: of the model, or added to the optimizer.
        block: the layer whose weight it is, if it is one.
        config: the layer's settings; of any other parameter the optimizer's.
    """
    keys = {"step", "momentum"}
    if has_master(parameter, config):
        keys.add("master")
    if block is None:
        return keys
    if config.factored:
        keys.add("factor")
        if config.region.two_sided:
            keys.add("output_factor")
            if config.b_s > 0:
                keys.add("output_moment")
    if config.keeps_second_moment:
        keys |= {"second_moment", "second_moment_step"}
    if config.keeps_feature_moments:
        keys |= {"mean", "mean_square", "moment_step"}
    if config.keeps_direction:
        keys.add("direction")
    return keys


def allowed_shapes(key: str, parameter: Tensor, block: Block | None) -> list[tuple[int, ...]]:
    """The shapes that state ``key`` of ``parameter`` may have; none where it has no such state."""
    if key in (*COUNTS, *_NUMBERS):
        return [()]
    if key in ("momentum", "gradient_square", "master", "last_step"):
        return [tuple(parameter.shape)]
    if block is None:
        return []
    groups, rows, d_in = block.shape
    if key == "row_square":
        return [(groups, rows)]
    if key == "direction":
        return [(groups, rows, d_in), (groups, rows, d_in + 1)]
    if key in ("second_moment", "factor", "output_factor", "output_moment"):
        side = rows if key.startswith("output") else d_in
        ones = key == "second_moment"
        sizes = [(blocks, side // blocks + ones) for blocks in range(1, side + 1) if side % blocks == 0]
        return [(groups, blocks, size, size) for blocks, size in sizes]
    return [(groups, d_in)] if key in ("mean", "mean_square", "factor_mean") else []


def check_entries(
    entries: Iterable[Entry],
    names: dict[nn.Parameter, str],
    by_weight: dict[nn.Parameter, Block],
    config_of: Callable[[Block | None], Config],
) -> None:
    """Require that every parameter's saved state is whole, of the right shapes, real and finite.

    Raises:
        TypeError: the state of a parameter is no dict.
        ValueError: it lacks something, or has a tensor that does not fit; the message names the parameter and the key.
    """
    tensors: dict[str, Tensor] = {}
    for parameter, entry in entries:
        name, block = names.get(parameter, "(not of the model)"), by_weight.get(parameter)
        if not isinstance(entry, dict):
            raise TypeError(f"state_dict: the state of parameter {name!r} must be a dict, not {entry!r}")
        for key, value in entry.items():
            where = f"{key!r} of parameter {name!r}"
            _check_tensor(where, value, allowed_shapes(str(key), parameter, block))
            if key in COUNTS and not float(value) >= 0:
                raise ValueError(f"state_dict: {where} is {float(value)}, it must be a count of at least 0")
            tensors[where] = value
        missing = required_keys(parameter, block, config_of(block)) - entry.keys() if entry else set()
        if missing:
            raise ValueError(
                f"state_dict: the state of parameter {name!r} has {sorted(map(str, entry))} and lacks {sorted(missing)}; load "
                f"all of what LNB.state_dict() returned, of an optimizer that claimed the same layers"
            )
    _require_finite(tensors)


def _check_tensor(where: str, value: object, wanted: list[tuple[int, ...]]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) not in wanted:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"value {value!r}"
        raise ValueError(
            f"state_dict: {where} has {found}, this optimizer needs {' or '.join(map(str, wanted)) if wanted else 'none'}"
        )
    if value.dtype not in _DTYPES or value.layout != torch.strided or value.is_meta:
        raise ValueError(
            f"state_dict: {where} is {value.dtype}, {value.layout}, on {value.device}; it must be dense float32 or float64 "
            f"with values"
        )


def _require_finite(tensors: dict[str, Tensor]) -> None:
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for where, value in tensors.items():
        by_device.setdefault(value.device, {})[where] = value.detach()
    for found in by_device.values():
        if bool(multi_tensor.all_finite(list(found.values()))):
            continue
        where = next(where for where, value in found.items() if not bool(value.isfinite().all()))
        raise ValueError(f"state_dict: {where} holds NaN or inf; the file is damaged, load another one")


def saved_settings(config: Config) -> dict[str, Any]:
    """The settings that decide what a layer's state means."""
    region = config.trust_region if config.region.needs_factor else "any other"
    return {"solver": config.solver, "trust_region": region}
