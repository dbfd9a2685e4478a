"""Symmetric matrices as rectangles that hold one triangle, in which ranks send them: half the numbers.

The rectangle is LAPACK's rectangular full packed format (Gustavson and others, 2010). With ``k = ceil(n / 2)`` it has the
first ``k`` columns of the matrix, ``[A11; A21]``. What these have above the diagonal is not needed, and is just as large as the
triangle of ``A22``: that takes its place. Where ``n`` is even, an empty row is put first to make room for the diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rectangle(n: int) -> tuple[int, int]:
    """The rows and columns of a rectangle: ``n (n + 1) / 2`` numbers."""
    return n + 1 - n % 2, (n + 1) // 2


def pack_(rectangles: Tensor, matrices: list[Tensor]) -> None:
    """Write the lower triangles of symmetric matrices.

    Args:
        rectangles: ``[count, rows, columns]``, written.
        matrices: ``[.., n, n]`` each, ``count`` in all.
    """
    n = matrices[0].shape[-1]
    k, m = (n + 1) // 2, n // 2
    counts = [matrix.numel() // n**2 for matrix in matrices]
    cut = [matrix.reshape(-1, n, n) for matrix in matrices]
    torch._foreach_copy_(
        list(rectangles[:, 1 - n % 2 :].split(counts)),
        [matrix[:, :, :k] for matrix in cut],
    )
    if m:
        last = torch.cat([matrix[:, k:, k:] for matrix in cut])
        rectangles[:, :m, k - m :].tril_(-1).add_(last.triu_())


def unpacked(rectangles: Tensor, n: int) -> Tensor:
    """The symmetric matrices ``[count, n, n]`` of ``rectangles`` ``[count, rows, columns]``."""
    k, m = (n + 1) // 2, n // 2
    columns = rectangles[:, 1 - n % 2 :]
    matrices = rectangles.new_empty(len(rectangles), n, n)
    first = columns[:, :k].tril()
    torch.add(first, first.tril(-1).mT, out=matrices[:, :k, :k])
    matrices[:, k:, :k] = columns[:, k:]
    matrices[:, :k, k:] = columns[:, k:].mT
    last = rectangles[:, :m, k - m :].triu()
    torch.add(last, last.triu(1).mT, out=matrices[:, k:, k:])
    return matrices
