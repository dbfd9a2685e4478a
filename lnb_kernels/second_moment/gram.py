"""Symmetric products ``A B'`` at half the work: the blocks below the diagonal are computed, those above mirrored."""

from __future__ import annotations

from itertools import pairwise

import torch

BLOCKS = 4  # block rows: 10 of 16 blocks are computed. More blocks save more but make less efficient products.
_WORTHWHILE = 1 << 26  # multiplications from which the smaller products repay their overhead


def block_edges(a: torch.Tensor) -> list[int]:
    """Where to cut the rows of ``a`` ``[..., d, k]``; the middle edges are multiples of 16.

    On an accelerator one product is taken: it is bound by latency, or by memory, more often than by arithmetic.
    """
    d = a.shape[-2]
    if a.device.type != "cpu" or d < 128 or a.numel() * d < _WORTHWHILE:
        return [0, d]
    return [0, *(d * i // BLOCKS // 16 * 16 for i in range(1, BLOCKS)), d]


def add_gram_(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, edges: list[int], beta: float = 1.0) -> None:
    """``out <- beta out + a b'`` on and below the block diagonal, for a symmetric ``a b'``; ``mirror_`` does the rest.

    ``out`` ``[d, d]`` or ``[g, d, d]``, ``a`` and ``b`` ``[d, k]`` or ``[g, d, k]``.
    """
    add = torch.addmm if out.dim() == 2 else torch.baddbmm
    for start, stop in pairwise(edges):
        block = out[..., start:stop, :stop]
        add(block, a[..., start:stop, :], b[..., :stop, :].mT, beta=beta, out=block)


def mirror_(out: torch.Tensor, edges: list[int]) -> None:
    """Copy the blocks below the block diagonal to above it."""
    for start, stop in pairwise(edges[1:]):
        out[..., :start, start:stop] = out[..., start:stop, :start].mT
