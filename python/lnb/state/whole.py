"""State that was saved from shards, for an optimizer of whole parameters (:mod:`lnb.sharded.state` is the other direction)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lnb.layers.claimed import Inventory, Layer
from lnb.sharded.dtensors import is_dtensor
from lnb.statistics.factored import block_count

SHARDS = "shards"
"""The key of a layer's state that tells into how many parts its rows were cut (:func:`shards_code`)."""
OF_OUTPUTS = ("output_moment", "output_factor")
_DIMENSION, _COLUMNS = 1 << 16, 1 << 15
_RESTARTED = ("factor", "factor_mean", *OF_OUTPUTS)


def shards_code(cuts: Iterable[tuple[int, bool]]) -> int:
    """One number for how a layer was cut: the size of each dimension of the mesh that cuts it, and whether it cuts columns."""
    code = 0
    for size, of_columns in cuts:
        code = code * _DIMENSION + size + _COLUMNS * of_columns
    return max(code, 1)


def row_cuts(code: int) -> list[int]:
    """The sizes of the dimensions of the mesh that cut the rows of such a layer."""
    return [cut for cut in _cuts(code) if cut < _COLUMNS]


def has_column_cuts(code: int) -> bool:
    """Whether a dimension of the mesh cut the columns of such a layer."""
    return any(cut >= _COLUMNS for cut in _cuts(code))


def _cuts(code: int) -> list[int]:
    found = []
    while code > 1:
        code, cut = divmod(code, _DIMENSION)
        found.append(cut)
    return found


@functools.lru_cache(maxsize=4096)
def output_borders(groups: int, rows: int, shards: int, limit: int | None) -> tuple[int, ...]:
    """Where the blocks of outputs of a layer of ``groups`` times ``rows`` neurons end, in so many shards of its rows."""
    total = groups * rows
    borders: list[int] = []
    chunk = -(-total // shards)
    for begin in range(0, total, chunk):
        end = min(total, begin + chunk)
        inside = range((begin // rows + 1) * rows, end, rows)
        ends = [begin, *inside, end]
        for first, last in itertools.pairwise(ends):
            size = (last - first) // block_count(last - first, limit)
            borders += range(first + size, last + 1, size)
    return tuple(borders)


def keeps_outputs(layer: Layer, code: int, shards: int, limit: int | None) -> bool:
    """Whether the blocks of outputs of a layer in shards of rows end where those of one that was saved do.

    Args:
        layer: the whole layer.
        code: of the saved one, 1 for a whole one.
        shards: of its rows now.
        limit: the setting ``block_size``.
    """
    cuts = row_cuts(code)
    if len(cuts) > 1:
        return False
    groups, rows, _ = layer.shape
    saved = cuts[0] if cuts else 1
    return output_borders(groups, rows, saved, limit) == output_borders(groups, rows, shards, limit)


def restart(state: dict[str, Any]) -> None:
    """Drop the state that the next step makes anew."""
    for key in _RESTARTED:
        state.pop(key, None)


def as_blocks(rows: Tensor, groups: int, count: int, size: int) -> Tensor:
    """Rows of diagonal blocks ``[rows, width]`` as ``[groups, count, size, size]``."""
    return rows[:, :size].reshape(groups, count, size, size)


def of_whole(
    state_dict: dict[str, Any], param_groups: list[dict[str, Any]], inventory: Inventory, block_size: int | None
) -> tuple[dict[str, Any], list[nn.Parameter]]:
    """``state_dict`` with the state of whole layers in place of that of shards; and weights whose factors start anew.

    Blocks that start anew are zero.

    Raises:
        ValueError: a tensor was not gathered.
    """
    layers = {layer.weight: layer for layer in inventory.layers}
    members = [parameter for group in param_groups for parameter in group["params"]]
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    states = dict(state_dict["state"])
    restarted: list[nn.Parameter] = []
    for parameter, number in zip(members, numbers, strict=True):
        layer, entry = layers.get(parameter), states.get(number)
        for key, value in (entry or {}).items():
            if isinstance(value, Tensor) and is_dtensor(value):
                raise ValueError(
                    f"state_dict: {key!r} of parameter {inventory.names.get(parameter, '(added)')!r} is in shards, and the "
                    f"parameter is whole; gather it first: "
                    f"get_optimizer_state_dict(..., options=StateDictOptions(full_state_dict=True)). Nothing was changed"
                )
        shards = None if entry is None else entry.get(SHARDS)
        if layer is not None and isinstance(shards, Tensor) and shards.numel() == 1:
            keeps = keeps_outputs(layer, int(shards), 1, block_size)
            states[number], fits = _of_layer(states[number], layer, block_size, keeps, has_column_cuts(int(shards)))
            restarted += [] if keeps and fits else [parameter]
    return {**state_dict, "state": states}, restarted


def _of_layer(
    entry: dict[str, Any], layer: Layer, block_size: int | None, keeps: bool, by_columns: bool
) -> tuple[dict[str, Any], bool]:
    """The state of a whole layer, which ``keeps`` its blocks of outputs, and whether the saved blocks of inputs are its own."""
    groups, rows, _ = layer.shape
    count = block_count(rows, block_size)
    found = {key: value for key, value in entry.items() if key != SHARDS}
    for key in ("row_square", "direction"):
        value = found.get(key)
        if isinstance(value, Tensor) and value.ndim and len(value) == groups * rows:
            found[key] = value.reshape(groups, rows, *value.shape[1:])
    for key in OF_OUTPUTS:
        value = found.get(key)
        if isinstance(value, Tensor) and value.ndim == 2 and keeps:
            found[key] = as_blocks(value, groups, count, rows // count)
        elif isinstance(value, Tensor):
            found[key] = torch.zeros(groups, count, rows // count, rows // count, dtype=value.dtype)
    blocks, fits = layer.input_blocks(block_size), True
    for key in ("second_moment", "factor") if by_columns else ():
        value = found.get(key)
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] != blocks:  # cut where columns were
            size = layer.d_in // blocks + value.shape[-1] - layer.d_in // value.shape[1]
            found[key] = torch.zeros(groups, blocks, size, size, dtype=value.dtype)
            found["second_moment_step"] = torch.zeros(())
            fits = False
    return found, fits
