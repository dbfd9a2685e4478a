"""How large an error may be: bounds that hold for every correct order of the sums, and are far below a wrong result.

A sum of ``n`` products in a dtype of unit ``eps`` errs by at most ``n eps`` times the sum of their absolute values (N. Higham,
"Accuracy and Stability of Numerical Algorithms", section 3.1), whatever the order. Plain PyTorch obeys it too; twice that, plus
eight terms for what is done beside the sum, plus one unit of the result's dtype and its smallest numbers, is allowed. Where
the absolute values overflow, nothing is required.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantum(dtype: torch.dtype) -> float:
    """What a number that underflows may lose. float16 is converted with its subnormal numbers."""
    limits = torch.finfo(dtype)
    return limits.tiny * limits.eps if dtype == torch.float16 else limits.tiny


def allowed(
    want: Tensor, magnitude: Tensor, terms: int, accumulate: torch.dtype, out: torch.dtype, lost: float | Tensor = 0.0
) -> Tensor:
    """The error allowed of every entry.

    Args:
        want: the right answer, float64.
        magnitude: the same sums of absolute values.
        terms: how many are added.
        accumulate: the dtype of the arithmetic.
        out: that of the result.
        lost: what an underflow of 1 quantum on the way is multiplied by.
    """
    inner, outer = torch.finfo(accumulate), torch.finfo(out)
    bound = 2 * (terms + 8) * inner.eps * magnitude + 2 * outer.eps * want.abs()
    bound = bound + (terms + 8) * quantum(accumulate) * (1.0 + lost) + quantum(out)
    return torch.where(magnitude < min(inner.max, outer.max) / 4, bound, float("inf"))


def wide(*tensors: Tensor | None) -> torch.dtype:
    """float64 where one of them is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def normwise(want: Tensor, relative: float, out: torch.dtype, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """An error relative to the largest entry of a matrix."""
    if want.numel() == 0:
        return torch.zeros_like(want)
    largest = want.abs().amax(dims, keepdim=True)
    bound = (relative + 2 * torch.finfo(out).eps) * largest + 4 * quantum(out)
    return torch.where(largest < torch.finfo(out).max / 8, bound, float("inf")).expand_as(want)
