"""Second moment of rows on the GPU: the Gram kernel with a ones column, row weights and an exponential average.

Equation, tile scheme, bytes and FLOPs: :mod:`lnb_kernels._triton.gram`.
"""

from __future__ import annotations

import torch

from lnb_kernels._triton import gram_launch
from lnb_kernels._triton.launch import compiles_or_unavailable


@compiles_or_unavailable("second_moment")
def second_moment(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    product: torch.dtype | None = None,
    blocks: int | None = None,
) -> torch.Tensor:
    """``S = sum_i w_i [x_i 1]' [x_i 1]``, ``[d+1, d+1]`` fp32, from ``x`` ``[..., d]`` bf16, fp16 or fp32.

    With ``product``, rows are first rounded to that dtype; with ``blocks`` the result is that of each block of features,
    ``[blocks, d/blocks+1, d/blocks+1]``, by one launch.
    """
    if product is not None:
        x = x.to(product)
    d = x.shape[-1]
    if blocks is not None:
        return _of_blocks(x, weights, blocks)
    s = x.new_empty((d + 1, d + 1), dtype=torch.float32)
    _accumulate(x, weights, s, None, 1.0, 0.0)
    return s


@compiles_or_unavailable("second_moment")
def second_moment_ema_(s: torch.Tensor, x: torch.Tensor, decay: float, weights: torch.Tensor | None = None) -> None:
    """``S <- decay S + (1 - decay) sum_i w_i [x_i 1]' [x_i 1]`` in place, in the epilogue: ``S`` is read and written once."""
    if x.shape[:-1].numel() > gram_launch.MAX_ROWS:  # several launches: if a later one failed, S would be half done
        s.mul_(decay).add_(second_moment(x, weights), alpha=1.0 - decay)
        return
    _accumulate(x, weights, s, s, 1.0 - decay, decay)


def _of_blocks(x: torch.Tensor, weights: torch.Tensor | None, blocks: int) -> torch.Tensor:
    n, size = x.shape[:-1].numel(), x.shape[-1] // blocks
    if weights is not None or not 0 < n <= gram_launch.MAX_ROWS or size == 0:
        return torch.stack([second_moment(part, weights) for part in x.tensor_split(blocks, dim=-1)])
    s = x.new_empty((blocks, size + 1, size + 1), dtype=torch.float32)
    gram_launch.launch_gram(x.reshape(n, blocks, size).transpose(0, 1), s)
    return s


def _accumulate(
    x: torch.Tensor, weights: torch.Tensor | None, s: torch.Tensor, c: torch.Tensor | None, alpha: float, beta: float
) -> None:
    d = x.shape[-1]
    n = x.shape[:-1].numel()
    rows = x.reshape(n, d)
    w = None if weights is None else weights.reshape(n)
    if n == 0 or d == 0:
        _without_products(x, w, s, c, alpha, beta)
        return
    for start in range(0, n, gram_launch.MAX_ROWS):
        part = slice(start, start + gram_launch.MAX_ROWS)
        gram_launch.launch_gram(
            rows[part].unsqueeze(0), s.unsqueeze(0), weights=None if w is None else w[part],
            c=None if c is None else c.unsqueeze(0), alpha=alpha, beta=beta,
        )  # fmt: skip
        c, beta = s, 1.0


def _without_products(
    x: torch.Tensor, w: torch.Tensor | None, s: torch.Tensor, c: torch.Tensor | None, alpha: float, beta: float
) -> None:
    """No rows or no features: only the count can be other than zero."""
    if c is None:
        s.zero_()
    else:
        s.mul_(beta)
    count = float(x.shape[:-1].numel()) if w is None else w.sum(dtype=torch.float32)
    s[-1, -1] += alpha * count
