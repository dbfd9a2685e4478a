"""The state of shards as checkpoints keep it: what belongs to rows as a ``DTensor`` cut like the parameter, the rest whole.

| state | of the optimizer here | in a state dict |
| --- | --- | --- |
| gradient averages and all else of the parameter's shape | local rows | ``DTensor``, as the parameter |
| ``row_square``, ``direction`` | local rows, by groups | ``DTensor`` ``[d_out]``, ``[d_out, columns]`` |
| statistics of inputs | the same on all ranks | whole; of a layer whose groups are shared out, ``DTensor`` |
| ``output_moment``, ``output_factor`` | blocks of local rows | ``DTensor`` ``[d_out, width]``, a row of a block in each |
| numbers | the same on all ranks | whole |

``shards`` tells into how many parts the rows were cut. On another number of ranks the blocks of outputs have other borders: then
these start anew, and with them the factors, at the next step; all else is cut anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lnb.sharded.local import LocalLayer, Locals, StandIn, first_part, local_of
from lnb.sharded.mesh import row_placements, sharded_dims
from lnb.state.whole import OF_OUTPUTS, SHARDS, as_blocks, has_column_cuts, keeps_outputs, row_cuts, shards_code
from lnb.statistics.arenas import compact
from lnb.statistics.factored import block_count

_LIKE_PARAMETER = ("momentum", "gradient_square", "master", "last_step")
_OF_ROWS = ("row_square", "direction")
_OF_GROUPS = ("second_moment", "factor", "factor_mean", "mean", "mean_square")


class StateForm:
    """Converts states of a model's parameters to what a state dict holds, and back.

    Args:
        locals_: the local layers and parameters.
        block_size: the setting.
    """

    def __init__(self, locals_: Locals, block_size: int | None) -> None:
        self._locals = locals_
        self._limit = block_size
        self._layers = {
            whole.weight: parts for whole, parts in locals_.layers.items() if isinstance(whole.weight, DTensor)
        }

    def exported(self, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Any]:
        """The state of ``parameter`` for a state dict. Nothing is exchanged."""
        if not isinstance(parameter, DTensor):
            return compact(state)
        parts = self._locals.stand_ins[parameter]
        layers = self._layers.get(parameter)
        states = [self._locals.states[part.local] for part in parts]
        found: dict[str, Any] = {}
        for key in first_part(state):
            if key == SHARDS:
                found[key] = state[key]
                continue
            values = [one[key] for one in states]
            if key in _LIKE_PARAMETER:
                found[key] = _placed(
                    _joined(values, parts, local_of(parameter).shape), parameter, tuple(parameter.shape)
                )
            elif layers is not None and key in _OF_ROWS:
                flat = [value.reshape(-1, *value.shape[2:]) for value in values]
                found[key] = _of_rows(_joined(flat, parts, (0, *flat[0].shape[1:])), parameter)
            elif layers is not None and key in OF_OUTPUTS:
                width = self._width(layers[0])
                rows = _joined([_as_rows(value, width) for value in values], parts, (0, width))
                found[key] = _of_rows(rows, parameter)
            elif layers is not None and key in _OF_GROUPS:
                whole = _of_groups if layers[0].columns is None else _of_columns
                found[key] = whole(values, layers, parameter)
            else:
                found[key] = values[0]
        return compact(found)

    def imported(self, parameter: nn.Parameter, entry: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        """The states of the cuts of ``parameter``, from its ``entry`` in a state dict, and whether factors have to start
        anew.

        Blocks that start anew are zero.
        """
        parts = self._locals.stand_ins[parameter]
        if not isinstance(parameter, DTensor):
            return [entry], False
        layers = self._layers.get(parameter)
        states: list[dict[str, Any]] = [{} for _ in parts]
        kept = layers is not None and self._keeps_blocks(parameter, entry, layers)
        for key, value in entry.items():
            if key == SHARDS or "@" in key:  # of other cuts, for which loading made up an entry
                continue
            if not isinstance(value, Tensor):
                values: Iterable[Any] = [value] * len(parts)
            elif key in _LIKE_PARAMETER:
                values = _cut(_rows_here(value, parameter, tuple(parameter.shape)), parts)
            elif layers is not None and key in _OF_ROWS:
                columns = value.shape[-1:] if key == "direction" else ()
                rows = _cut(_rows_here(value, parameter, (parameter.shape[0], *columns)), parts)
                values = [row.reshape(*layer.shape[:2], *columns) for row, layer in zip(rows, layers, strict=True)]
            elif layers is not None and key in OF_OUTPUTS:
                if kept and value.ndim == 4:  # of a whole layer
                    value = _as_rows(value, self._width(layers[0]))
                if kept:
                    rows = _cut(_rows_here(value, parameter, (parameter.shape[0], value.shape[-1])), parts)
                    values = [as_blocks(row, *self._blocks_of(layer)) for row, layer in zip(rows, layers, strict=True)]
                else:
                    shapes = [self._blocks_of(layer) for layer in layers]
                    values = [torch.zeros((*shape, shape[-1]), dtype=value.dtype) for shape in shapes]
            elif layers is not None and key in _OF_GROUPS:
                values = (
                    _groups_here(value, layers) if layers[0].columns is None else [self._columns_here(value, layers[0])]
                )
            else:
                values = [value] * len(parts)
            for state, own in zip(states, values, strict=True):
                state[key] = own
        by_columns = layers is not None and (layers[0].columns is not None or has_column_cuts(_saved_code(entry)))
        fits = layers is None or not by_columns or self._fit_inputs(states, layers, kept)
        return states, not (kept and fits) and any(key in entry for key in OF_OUTPUTS)

    def _fit_inputs(self, states: list[dict[str, Any]], layers: list[LocalLayer], kept: bool) -> bool:
        """Have second moments and factors that were saved in other blocks of inputs start anew; return whether none does."""
        fits = kept or layers[0].columns is None
        for state, layer in zip(states, layers, strict=True):
            count = layer.input_blocks(self._limit)
            for key in ("second_moment", "factor"):
                value = state.get(key)
                if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] != count:
                    size = layer.d_in // count + value.shape[-1] - layer.d_in // value.shape[1]
                    state[key] = torch.zeros(len(value), count, size, size, dtype=value.dtype)
                    fits = False
            if not fits and "second_moment_step" in state:
                state["second_moment_step"] = torch.zeros(())
        return fits

    def _columns_here(self, value: Tensor, layer: LocalLayer) -> Tensor:
        """Statistics of the inputs whose columns are here; zeros where saved ones had other blocks."""
        assert layer.columns is not None
        count = layer.d_in if value.ndim == 2 else layer.input_blocks(self._limit)
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        begin, shape = layer.columns.index * count, (1, count, *value.shape[2:])
        if whole.shape[1] != count * layer.columns.of:
            return torch.zeros(shape, dtype=value.dtype)
        return whole[:, begin : begin + count].clone()

    def mark(self, states: Any) -> None:
        """Note in the states of layers into how many parts their rows are cut."""
        for weight in self._layers:
            state = states.get(weight)
            if state and SHARDS not in state and isinstance(weight, DTensor):
                state[SHARDS] = torch.tensor(_shards(weight))

    def _keeps_blocks(self, parameter: DTensor, entry: dict[str, Any], layers: list[LocalLayer]) -> bool:
        code, own = _saved_code(entry), _shards(parameter)
        cuts = row_cuts(own)
        number = math.prod(cuts)
        if self._largest(layers[0], number) > self._width(layers[0]):
            return False
        if code == own or layers[0].columns is not None:
            return code == own
        return len(cuts) <= 1 and keeps_outputs(layers[0].whole, code, number, self._limit)

    def _blocks_of(self, layer: LocalLayer) -> tuple[int, int, int]:
        """Groups, blocks of each, and neurons of each block of a local layer."""
        groups, rows, _ = layer.shape
        count = block_count(rows, self._limit)
        return groups, count, rows // count

    def _width(self, layer: LocalLayer) -> int:
        """Columns of the rows of blocks, enough for any number of ranks that is a power of two, or three times one."""
        numbers = sorted({factor << power for factor in (1, 3) for power in range(12)})
        return max(self._largest(layer, number) for number in numbers)

    def _largest(self, layer: LocalLayer, shards: int) -> int:
        return _largest_block(layer.whole.shape[0], layer.whole.shape[1], shards, self._limit)


@functools.lru_cache(maxsize=4096)
def _largest_block(groups: int, rows: int, shards: int, limit: int | None) -> int:
    """The neurons of the largest block of a layer of ``groups`` times ``rows`` neurons in ``shards`` shards."""
    total = groups * rows
    chunk = -(-total // shards)
    lengths = set()
    for begin in range(0, total, chunk):
        end = min(total, begin + chunk)
        if groups == 1:
            lengths.add(end - begin)
        elif chunk % rows == 0:
            lengths.add(rows)
        else:
            first, last = begin // rows, (end - 1) // rows
            lengths |= {min(end, (g + 1) * rows) - max(begin, g * rows) for g in (first, last)} | {rows}
    return max(length // block_count(length, limit) for length in lengths)


def _saved_code(entry: dict[str, Any]) -> int:
    """How the layer of a saved state was cut; 1 for a whole one."""
    saved = entry.get(SHARDS)
    return int(saved) if isinstance(saved, Tensor) and saved.numel() == 1 else 1


def _shards(parameter: DTensor) -> int:
    """Into how many parts the rows of ``parameter`` are cut, and by which dimensions of the mesh; columns likewise."""
    cuts = ((parameter.device_mesh.size(dim), parameter.placements[dim].is_shard(1)) for dim in sharded_dims(parameter))
    return shards_code(cuts)


def _of_rows(rows: Tensor, parameter: DTensor) -> DTensor:
    """A line for each local row as a tensor that is cut like the rows of ``parameter``."""
    return _placed(rows, parameter, (parameter.shape[0], *rows.shape[1:]), row_placements(parameter))


def _of_columns(values: list[Tensor], layers: list[LocalLayer], parameter: DTensor) -> DTensor:
    """Statistics of the inputs whose columns are here, ``[1, blocks or inputs, ...]``, as a tensor of all."""
    columns, value = layers[0].columns, values[0]
    assert columns is not None
    placements: list[Placement] = [p if p.is_shard(1) else Replicate() for p in parameter.placements]
    return _placed(value, parameter, (1, value.shape[1] * columns.of, *value.shape[2:]), placements)


def _placed(
    local: Tensor, parameter: DTensor, shape: tuple[int, ...], placements: Sequence[Placement] | None = None
) -> DTensor:
    """The local part of a tensor of ``shape`` that is cut like ``parameter``, or as ``placements`` say."""
    return DTensor.from_local(
        local if _is_alone(local) else local.clone(),
        parameter.device_mesh,
        parameter.placements if placements is None else placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )


def _is_alone(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _joined(values: list[Tensor], parts: list[StandIn], none: tuple[int, ...]) -> Tensor:
    """Rows of all cuts, without those that stand for none; of the shape ``none`` where there is no other."""
    rows = [value for value, part in zip(values, parts, strict=True) if not part.cut.is_empty]
    if not rows:
        return values[0].new_zeros(none)
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _cut(rows: Tensor, parts: list[StandIn]) -> list[Tensor]:
    """Local rows as those of every cut; a row of zeros where there is none."""
    return [
        rows.new_zeros((1, *rows.shape[1:])) if part.cut.is_empty else rows[part.cut.begin : part.cut.end]
        for part in parts
    ]


def _rows_here(value: Tensor, parameter: DTensor, shape: tuple[int, ...]) -> Tensor:
    """The local part of a saved tensor, which is whole or cut like ``parameter``; of rows, all columns."""
    placements = list(parameter.placements) if shape == tuple(parameter.shape) else row_placements(parameter)
    if isinstance(value, DTensor):
        return (value if list(value.placements) == placements else value.redistribute(placements=placements)).to_local()
    if value.numel() != math.prod(shape):
        return value  # what is wrong with it is said where shapes are checked
    sizes, offsets = compute_local_shape_and_global_offset(shape, parameter.device_mesh, placements)
    whole = value.reshape(shape)
    for dim, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        whole = whole.narrow(dim, min(offset, shape[dim]), size)
    return whole


def _as_rows(blocks: Tensor, width: int) -> Tensor:
    """Blocks ``[groups, blocks, size, size]`` as ``[rows, width]``: what is wider is left out."""
    size = blocks.shape[-1]
    rows = blocks.reshape(-1, size)
    return rows[:, :width] if size >= width else nn.functional.pad(rows, (0, width - size))


def _of_groups(values: list[Tensor], layers: list[LocalLayer], parameter: DTensor) -> Tensor:
    """Statistics of the inputs of all groups, or of the groups here."""
    whole = layers[0].whole.shape[0]
    if len(values) > 1 or len(values[0]) == whole:
        return values[0] if len(values) == 1 else torch.cat(values)
    here = values[0][:0] if layers[0].cut.is_empty else values[0]
    return _placed(here, parameter, (whole, *here.shape[1:]))


def _groups_here(value: Tensor, layers: list[LocalLayer]) -> list[Tensor]:
    """Statistics of the groups of each local layer."""
    if isinstance(value, DTensor):
        here = value.to_local()
        return [here if len(here) else here.new_zeros((1, *here.shape[1:]))]
    return [value[layer.cut.groups[0] : layer.cut.groups[1]] for layer in layers]
