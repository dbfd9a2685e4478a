"""Element offsets of tensors with more than 2^31 elements, and the order of lower-triangle tiles."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def offset64(index, stride):
    """``index * stride`` in int64: widened BEFORE the multiply, so that it does not wrap at 2^31 elements.

    Every offset of a kernel that grows with the number of rows, batches or pixels goes through this function.
    """
    return tl.cast(index, tl.int64) * tl.cast(stride, tl.int64)


@triton.jit
def lower_tile(index):
    """Row and column ``(i, j)``, ``j <= i``, of tile ``index`` of a lower triangle: ``index = i (i + 1) / 2 + j``.

    The square root is only a guess (float32 is inexact from 2^24 on); two integer comparisons make it exact.
    """
    i = ((tl.sqrt((8 * index + 1).to(tl.float32)) - 1) / 2).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > index, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= index, i + 1, i)
    return i, index - i * (i + 1) // 2
