"""Second moment of samples in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels._matrix import as_matrix
from lnb_kernels.second_moment.gram import add_gram_, block_edges, mirror_

_SMALL = 1 << 15  # elements below which a copy with the column of ones costs less than the calls it saves


def second_moment(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    product: torch.dtype | None = None,
    blocks: int | None = None,
) -> torch.Tensor:
    """``S = sum_i w_i [x_i 1]' [x_i 1]``, ``[d+1, d+1]``, accumulated in float32 (float64 for float64 ``x``).

    With ``product``, samples are first rounded to that dtype. With ``blocks``, features are cut into that many blocks, each of
    which has a result of its own, ``[blocks, d/blocks+1, d/blocks+1]``.
    """
    if blocks is not None:
        return torch.stack([second_moment(part, weights, product) for part in x.tensor_split(blocks, dim=-1)])
    d = x.shape[-1]
    rounded = x if product is None else x.to(product)
    accumulate = accumulation_dtype(torch.promote_types(x.dtype, rounded.dtype))
    samples = as_matrix(rounded).to(accumulate)  # [N, d]
    if weights is None and 0 < samples.numel() < _SMALL:
        samples = F.pad(samples, (0, 1), value=1.0)
        return torch.mm(samples.t(), samples)
    s = samples.new_empty(d + 1, d + 1)
    if weights is None:
        weighted = samples
        s[d, d] = samples.shape[0]
    else:
        w = weights.reshape(-1, 1).to(accumulate)  # [N, 1]
        weighted = samples * w
        s[d, d] = w.sum()
    edges = block_edges(samples.t())
    add_gram_(s[:d, :d], weighted.t(), samples.t(), edges, beta=0.0)
    mirror_(s[:d, :d], edges)
    s[d, :d] = s[:d, d] = weighted.sum(0)
    return s
