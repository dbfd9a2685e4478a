"""How the arguments of a case are built: small functions whose calls are the text of a case, and of its snippet.

A case is Python text from the start, so that what is run is what a report prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

GENERATOR = torch.Generator()


def normal(seed: int, shape: Sequence[int], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers times ``scale``, finite in ``dtype``."""
    values = torch.randn(shape, generator=GENERATOR.manual_seed(seed), dtype=torch.float64) * scale
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)


def positive(seed: int, shape: Sequence[int], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Numbers between ``scale`` and ``2 scale``."""
    values = torch.rand(shape, generator=GENERATOR.manual_seed(seed), dtype=torch.float64)
    return ((1.0 + values) * scale).to(dtype)


def spiked(x: Tensor, place: int, value: float) -> Tensor:
    """``x`` with one entry replaced, by its number in row-major order."""
    flat = x.reshape(-1).clone()
    if flat.numel():
        flat[place % flat.numel()] = value
    return flat.reshape(x.shape)


def spd(
    seed: int, lead: Sequence[int], n: int, dtype: torch.dtype = torch.float32, ridge: float = 0.5, scale: float = 1.0
) -> Tensor:
    """Symmetric positive definite matrices of condition numbers below about ``4 / ridge``."""
    rows = normal(seed, (*lead, 2 * n + 1, n), torch.float64) / (2 * n + 1) ** 0.5
    return ((rows.mT @ rows + ridge * torch.eye(n, dtype=torch.float64)) * scale).to(dtype)


def moment(seed: int, lead: Sequence[int], d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Second moments ``[..., d+1, d+1]`` of ``2 d + 3`` rows with a column of ones."""
    rows = normal(seed, (*lead, 2 * d + 3, d), torch.float64)
    rows = torch.cat((rows, torch.ones(*lead, 2 * d + 3, 1, dtype=torch.float64)), -1)
    return (rows.mT @ rows).to(dtype)


def transposed(x: Tensor) -> Tensor:
    """Column-major."""
    return x.mT.contiguous().mT if x.dim() > 1 else x


def swapped(x: Tensor) -> Tensor:
    """The first two dimensions in the other order of memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 1 else x


def strided(x: Tensor) -> Tensor:
    """Every second column of a wider tensor that holds NaN elsewhere."""
    if x.dim() == 0:
        return x
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
    wide[..., 1::2] = x
    return wide[..., 1::2]


def padded(x: Tensor) -> Tensor:
    """Rows apart: the left columns of a wider tensor that holds NaN elsewhere."""
    if x.dim() == 0:
        return x
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), float("nan"))
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def sliced(x: Tensor) -> Tensor:
    """Contiguous, from the second entry of a longer buffer that holds NaN elsewhere."""
    buffer = x.new_full((x.numel() + 3,), float("nan"))
    buffer[1 : 1 + x.numel()] = x.reshape(-1)
    return buffer[1 : 1 + x.numel()].view(x.shape)


def expanded(x: Tensor) -> Tensor:
    """The first row, for all of them, without memory of their own."""
    return x[:1].expand(x.shape) if x.dim() and x.shape[0] else x


def channels_last(x: Tensor) -> Tensor:
    """Channels innermost, where there are four dimensions."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def negated(x: Tensor) -> Tensor:
    """The same values through PyTorch's negation bit: memory holds ``-x``."""
    return torch._neg_view(-x)


def conjugated(x: Tensor) -> Tensor:
    """The same values as the imaginary part of a conjugated view: strided, and through the negation bit."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def inference(x: Tensor) -> Tensor:
    """An inference tensor."""
    with torch.inference_mode():
        return x.clone()


def with_grad(x: Tensor) -> Tensor:
    """A leaf that requires a gradient."""
    return x.detach().requires_grad_()


class Subclass(torch.Tensor):
    """A subclass that adds nothing."""


def subclass(x: Tensor) -> Tensor:
    """``x`` as a tensor of a subclass."""
    return x.as_subclass(Subclass)


class Wrapper(torch.Tensor):
    """A subclass without memory of its own: every operation goes to the tensor within."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        """A tensor like ``inner``."""
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Operate on what is within."""

        def within(value: Any) -> Any:
            return value.held if isinstance(value, Wrapper) else value

        found = func(*tree_map(within, args), **tree_map(within, kwargs or {}))
        return tree_map(lambda value: Wrapper(value) if isinstance(value, torch.Tensor) else value, found)


def wrapped(x: Tensor) -> Tensor:
    """``x`` within a tensor that has no memory. PyTorch's own operations lose a negation bit in there."""
    return Wrapper(x.resolve_neg())


def wrong_shape(x: Tensor) -> Tensor:
    """Two more dimensions, of sizes that no argument has; different ones, for stacks of square matrices may have any more."""
    return x.new_zeros((*x.shape, 23, 29))


def metric_of(s: Tensor, size: int, ridge: float) -> Tensor:
    """``S / N`` of so many columns, with ``ridge`` on the weights' diagonal."""
    a = s[..., :size, :size] / s[..., -1:, -1:].clamp_min(1)
    weights = torch.ones(size, dtype=a.dtype)
    weights[s.shape[-1] - 1 :] = 0.0
    return a + ridge * torch.diag(weights)
