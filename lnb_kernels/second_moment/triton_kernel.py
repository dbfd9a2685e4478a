"""Second moment of samples on the GPU: the Gram kernel with a ones column and sample weights.

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

    With ``product``, samples are first rounded to that dtype; with ``blocks`` the result is that of each block of features,
    ``[blocks, d/blocks+1, d/blocks+1]``, by one launch.
    """
    if product is not None:
        x = x.to(product)
    d = x.shape[-1]
    if blocks is not None:
        return _of_blocks(x, weights, blocks)
    n = x.shape[:-1].numel()
    s = x.new_empty((d + 1, d + 1), dtype=torch.float32)
    samples, w = x.reshape(n, d), None if weights is None else weights.reshape(n)
    if n == 0 or d == 0:  # no products: only the count can be other than zero
        s.zero_()[-1, -1] = float(n) if w is None else w.sum(dtype=torch.float32)
        return s
    for start in range(0, n, gram_launch.MAX_SAMPLES):
        part = slice(start, start + gram_launch.MAX_SAMPLES)
        gram_launch.launch_gram(
            samples[part].unsqueeze(0), s.unsqueeze(0), weights=None if w is None else w[part],
            c=s.unsqueeze(0) if start else None, beta=float(start > 0),
        )  # fmt: skip
    return s


def _of_blocks(x: torch.Tensor, weights: torch.Tensor | None, blocks: int) -> torch.Tensor:
    n, size = x.shape[:-1].numel(), x.shape[-1] // blocks
    if weights is not None or not 0 < n <= gram_launch.MAX_SAMPLES or size == 0:
        return torch.stack([second_moment(part, weights) for part in x.tensor_split(blocks, dim=-1)])
    s = x.new_empty((blocks, size + 1, size + 1), dtype=torch.float32)
    gram_launch.launch_gram(x.reshape(n, blocks, size).transpose(0, 1), s)
    return s
