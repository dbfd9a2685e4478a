"""Element offsets of tensors with more than 2^31 elements, and the order of lower-triangle tiles."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def offset64(index, stride):
    """``index * stride`` in int64: widened BEFORE the multiply, so that it does not wrap at 2^31 elements.

    Every offset of a kernel that grows with the number of samples, batches or pixels goes through this function.
    """
    return tl.cast(index, tl.int64) * tl.cast(stride, tl.int64)


@triton.jit
def lower_tile(index, blocks):
    """Row and column ``(i, j)``, ``j <= i < blocks``, of tile ``index`` of a lower triangle, in integers alone.

    The triangle is folded into a rectangle: row ``k`` and the complementary row share one line, whose length is
    ``blocks + 1`` (``blocks`` where that is odd, and the longest row then has a line of its own).
    """
    odd = blocks % 2
    width = blocks + 1 - odd
    short = index // width - odd  # the shorter row of this line; -1 for none
    place = index % width
    first = place <= short
    i = tl.where(first, short, blocks - 1 - odd - short)
    return i, tl.where(first, place, place - short - 1)
