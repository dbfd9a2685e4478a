"""State that was saved of shards, for an optimizer of whole parameters (:mod:`lnb.sharded.state` is the other direction)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lnb.blocks import Block, Inventory
from lnb.factored import block_count

SHARDS = "shards"
"""The key of a layer's state that tells into how many parts its rows were cut."""
OF_OUTPUTS = ("output_moment", "output_factor")
_RESTARTED = ("factor", "factor_mean", *OF_OUTPUTS)


def restart(state: dict[str, Any]) -> None:
    """Drop what is made anew at the next step."""
    for key in _RESTARTED:
        state.pop(key, None)


def as_blocks(rows: Tensor, groups: int, count: int, size: int) -> Tensor:
    """Rows of diagonal blocks ``[rows, width]`` as ``[groups, count, size, size]``."""
    return rows[:, :size].reshape(groups, count, size, size)


def of_whole(
    state_dict: dict[str, Any], param_groups: list[dict[str, Any]], inventory: Inventory, block_size: int | None
) -> tuple[dict[str, Any], list[nn.Parameter]]:
    """``state_dict`` with the state of whole layers in place of that of shards; and weights whose factors start anew.

    Blocks that start anew are zero. Tensors must have been gathered (``full_state_dict=True``).
    """
    layers = {block.weight: block for block in inventory.blocks}
    members = [parameter for group in param_groups for parameter in group["params"]]
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    states = dict(state_dict["state"])
    restarted: list[nn.Parameter] = []
    for parameter, number in zip(members, numbers, strict=True):
        block, entry = layers.get(parameter), states.get(number)
        shards = None if entry is None else entry.get(SHARDS)
        if block is not None and isinstance(shards, Tensor) and shards.numel() == 1:
            states[number] = _of_layer(states[number], block, block_size, int(shards) == 1)
            restarted += [] if int(shards) == 1 else [parameter]
    return {**state_dict, "state": states}, restarted


def _of_layer(entry: dict[str, Any], block: Block, block_size: int | None, keeps: bool) -> dict[str, Any]:
    groups, rows, _ = block.shape
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
    blocks = block.input_blocks(block_size)
    for key in ("second_moment", "factor"):
        value = found.get(key)
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] != blocks:  # cut where columns were
            size = block.d_in // blocks + value.shape[-1] - block.d_in // value.shape[1]
            found[key] = torch.zeros(groups, blocks, size, size, dtype=value.dtype)
            found["second_moment_step"] = torch.zeros(())
    return found
