"""What can be used of second moments, by Triton: one launch for up to 1,024 moments, which looks them up in a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lnb_kernels._triton.crossover import power_of_two
from lnb_kernels._triton.launch import Launches, compiles_or_unavailable, on_device
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.tables import MOST_ITEMS, address, field, item_of, table_of
from lnb_kernels._writes import require_aligned
from lnb_kernels.multi_tensor import reference

FIELDS = tl.constexpr(3)
MOMENT, SIDE, NUMBER = map(tl.constexpr, range(3))


@triton.jit
def flags_kernel(table_ptr, flags_ptr, moments, ITEMS: tl.constexpr, WIDE: tl.constexpr):
    """Clear ``flags`` ``[2, moments]`` where a matrix has a last row, or a diagonal, that is not finite."""
    item, number = item_of(table_ptr, tl.program_id(0), ITEMS)
    side = field(table_ptr, item, SIDE, ITEMS, FIELDS).to(tl.int32)
    matrix_ptr = address(table_ptr, item, MOMENT, ITEMS, FIELDS, tl.float32, False) + offset64(number, side * side)
    flag_ptr = flags_ptr + field(table_ptr, item, NUMBER, ITEMS, FIELDS)
    sums = tl.zeros((WIDE,), tl.int32)
    squares = tl.zeros((WIDE,), tl.int32)
    for first in range(0, side, WIDE):
        i = first + tl.arange(0, WIDE)
        row = tl.load(matrix_ptr + offset64(side - 1, side) + i, mask=i < side, other=0.0)
        diagonal = tl.load(matrix_ptr + offset64(i, side + 1), mask=i < side, other=0.0)
        sums += (row - row != 0.0).to(tl.int32)
        squares += (diagonal - diagonal != 0.0).to(tl.int32)
    # By any number of programs, which all write the same.
    tl.store(flag_ptr, 0, mask=tl.sum(sums, 0) > 0)
    tl.store(flag_ptr + moments, 0, mask=tl.sum(squares, 0) > 0)


@compiles_or_unavailable("moment_flags")
def moment_flags(moments: Sequence[Tensor]) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.moment_flags`."""
    if any(x.dtype != torch.float32 or not x.is_contiguous() or x.is_neg() or x.numel() == 0 for x in moments):
        return reference.moment_flags(moments)
    flags = torch.ones((2, len(moments)), dtype=torch.bool, device=moments[0].device)
    rows = [(moment.data_ptr(), moment.shape[-1], i) for i, moment in enumerate(moments)]
    for moment, (own, _, _) in zip(moments, rows, strict=True):
        require_aligned("moments", own, moment.numel(), moment.element_size())
    wide = min(256, power_of_two(max(moment.shape[-1] for moment in moments)))
    made = Launches()
    with on_device(flags):
        for first in range(0, len(rows), MOST_ITEMS):
            counts = [moment.shape[:-2].numel() for moment in moments[first : first + MOST_ITEMS]]
            table = table_of(rows[first : first + MOST_ITEMS], counts, flags.device)
            made.add(
                flags_kernel, table.programs, table.numbers, flags.view(torch.uint8), len(moments),
                ITEMS=table.items, WIDE=wide, num_warps=4,
            )  # fmt: skip
        made.make(flags.device)
    return flags
