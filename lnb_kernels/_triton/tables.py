"""Lists of tensors for one launch: a table of addresses and sizes in the memory of the device, which programs look up.

Triton's launches take no lists. A table is a list of integers: for each item the first of the programs that serve it, and
then ``FIELDS`` numbers of each. Between two refreshes a step reads and writes the same memory every time, so its tables are
copied to the device once, and found again by their content.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lnb_kernels._captured import device_constants, is_capturing
from lnb_kernels._triton.crossover import power_of_two

MOST_ITEMS = 1024
"""Items of one table: every program reads where each of them begins."""

_FAR = 2**62  # where items that do not exist begin


@triton.jit
def item_of(table_ptr, program, ITEMS: tl.constexpr):
    """The item that ``program`` serves, and which of that item's programs it is."""
    firsts = tl.load(table_ptr + tl.arange(0, ITEMS))
    mine = firsts <= program
    item = tl.sum(mine.to(tl.int32), 0) - 1
    return item, (program - tl.max(tl.where(mine, firsts, 0), 0)).to(tl.int32)


@triton.jit
def field(table_ptr, item, name: tl.constexpr, ITEMS: tl.constexpr, FIELDS: tl.constexpr):
    """Number ``name`` of ``item``, int64."""
    return tl.load(table_ptr + ITEMS + item * FIELDS + name)


@triton.jit
def address(table_ptr, item, name: tl.constexpr, ITEMS: tl.constexpr, FIELDS: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip  # noqa: E501
    """Field ``name`` of ``item`` as a pointer to ``TYPE``, on a boundary of 16 bytes where ``ALIGNED``."""
    pointer = field(table_ptr, item, name, ITEMS, FIELDS).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit(do_not_specialize=["first", *(f"v{i}" for i in range(16))])
def write_kernel(out_ptr, first, v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15):
    """16 numbers of a table from the parameters of the launch, which a captured graph holds."""
    out_ptr += first
    tl.store(out_ptr, tl.cast(v0, tl.int64))
    tl.store(out_ptr + 1, tl.cast(v1, tl.int64))
    tl.store(out_ptr + 2, tl.cast(v2, tl.int64))
    tl.store(out_ptr + 3, tl.cast(v3, tl.int64))
    tl.store(out_ptr + 4, tl.cast(v4, tl.int64))
    tl.store(out_ptr + 5, tl.cast(v5, tl.int64))
    tl.store(out_ptr + 6, tl.cast(v6, tl.int64))
    tl.store(out_ptr + 7, tl.cast(v7, tl.int64))
    tl.store(out_ptr + 8, tl.cast(v8, tl.int64))
    tl.store(out_ptr + 9, tl.cast(v9, tl.int64))
    tl.store(out_ptr + 10, tl.cast(v10, tl.int64))
    tl.store(out_ptr + 11, tl.cast(v11, tl.int64))
    tl.store(out_ptr + 12, tl.cast(v12, tl.int64))
    tl.store(out_ptr + 13, tl.cast(v13, tl.int64))
    tl.store(out_ptr + 14, tl.cast(v14, tl.int64))
    tl.store(out_ptr + 15, tl.cast(v15, tl.int64))


@dataclass(frozen=True)
class Table:
    """What a launch takes: the numbers on the device, items rounded up to a power of two, and programs of all items."""

    numbers: Tensor
    items: int
    programs: int


def table_of(rows: Sequence[Sequence[int]], programs: Sequence[int], device: torch.device) -> Table:
    """A table of at most :data:`MOST_ITEMS` items: their fields, and how many programs serve each."""
    items = power_of_two(len(rows))
    firsts, total = [], 0
    for count in programs:
        firsts.append(total)
        total += count
    firsts += [_FAR] * (items - len(rows))
    return Table(on_device((*firsts, *(number for row in rows for number in row)), device), items, total)


def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """``numbers`` on ``device``, int64, copied from the host where they are new.

    While a CUDA graph is captured its kernels write them: a replay would copy from memory of the host that is gone.
    """
    return _written(numbers, device) if is_capturing() else _copied(numbers, device)


def bits_of(number: float) -> int:
    """A float64 as a table holds it: as the integer of the same bits."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


@device_constants(maxsize=256)
def _copied(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def _written(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    padded = (*numbers, *[0] * (-len(numbers) % 16))
    out = torch.empty(len(padded), dtype=torch.int64, device=device)
    for first in range(0, len(padded), 16):
        write_kernel[(1,)](out, first, *padded[first : first + 16], num_warps=1)
    return out
