"""How squares and products of entries stay in range: powers of two that bring tensors to unit size, and wide sums.

To multiply by a power of two rounds nothing: a result that does not depend on the scale of its operands keeps its bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums of products: float64, in which no product of float32 numbers overflows; float32 on devices without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def largest_squarable(dtype: torch.dtype) -> float:
    """What larger entries count as in Adam's rule: an infinite mean square would never end."""
    return math.sqrt(torch.finfo(dtype).max) / 2


def unit_scale(*tensors: Tensor | None, matrix_dims: int = 2) -> Tensor:
    """The power of two that brings the largest absolute entry of each matrix into ``[0.5, 1)``.

    Args:
        tensors: of one dtype, each ``[..., rows, columns]`` with the same leading dimensions; those that are None do not
            count.
        matrix_dims: how many last dimensions make up a matrix.

    Returns:
        ``[..., 1, 1]``, as many ones as ``matrix_dims``: 1 for a matrix that is zero, empty or not finite. It is at most
        the reciprocal of the dtype's least normal number, so that entries below that may stay smaller than 0.5.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    dims = tuple(range(-matrix_dims, 0))
    largest: Tensor | None = None
    for tensor in given:
        own = _largest(tensor.detach(), dims)
        largest = own if largest is None else torch.maximum(largest, own)
    assert largest is not None, "unit_scale needs a tensor"
    limits = torch.finfo(largest.dtype)
    most = -int(math.log2(limits.tiny))
    wide = largest if largest.dtype == torch.float64 else largest.float()
    exponent = torch.frexp(wide).exponent.clamp(-most, most)
    scale = torch.ldexp(torch.ones_like(wide), -exponent)
    return torch.where((wide > 0) & wide.isfinite(), scale, 1.0).to(largest.dtype)


def _largest(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    if any(tensor.shape[dim] == 0 for dim in dims):
        return tensor.new_zeros([1 if i - tensor.dim() in dims else n for i, n in enumerate(tensor.shape)])
    largest: Tensor = torch.linalg.vector_norm(tensor, math.inf, dim=dims, keepdim=True)
    return largest
