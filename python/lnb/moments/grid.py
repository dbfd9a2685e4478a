"""Weights on a uniform grid: the grid from a row's least and largest weight, and rounding to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lnb.config import check_count

MOST_BITS = 8


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised weight, and how it was made.

    Attributes:
        weight: ``scale (code - zero)``, in the shape and dtype of the original.
        codes: ``[d_out, d_in]`` uint8, from 0 to ``2^bits - 1``.
        scale, zero: ``[d_out, d_in / group_size]`` in the dtype of the computation.
        bits: of a code.
        group_size: weights of a row that share a scale.
        blocks: diagonal blocks of the second moment that was used; None for none.
        error: ``E ||(W - Q) x||^2``, by that second moment; None without one.
        rounding_error: the same if every weight had been rounded to the nearest point of the grid.
    """

    weight: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int
    blocks: int | None = None
    error: float | None = None
    rounding_error: float | None = None

    def __repr__(self) -> str:
        """Without the tensors, which fill a screen."""
        text = f"Quantized: {tuple(self.weight.shape)} in {self.bits} bits, groups of {self.group_size}"
        errors = (("error", self.error), ("by rounding", self.rounding_error))
        return text + "".join(f", {name} {value:.3g}" for name, value in errors if value is not None)


@dataclass(frozen=True, eq=False)
class Grid:
    """The points ``scale (code - zero)``, ``code = 0 .. 2^bits - 1``, that each group of weights may take.

    Attributes:
        scale, zero: ``[d_out, groups]``; the grid contains 0.
        bits: of a code.
        group_size: weights of a row that share them.
    """

    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int

    @classmethod
    def of(cls, weight: Tensor, bits: int, group_size: int | None) -> Grid:
        """The grid from the least to the largest weight of each group, and 0, of ``[d_out, d_in]``.

        Raises:
            ValueError, TypeError: ``bits`` or ``group_size`` is not allowed.
        """
        check_count("bits", bits)
        if bits > MOST_BITS:
            raise ValueError(f"bits={bits!r} must be at most {MOST_BITS}")
        d_in = weight.shape[1]
        size = d_in if group_size is None else group_size
        check_count("group_size", size)
        if d_in % size:
            raise ValueError(f"group_size={group_size!r} must divide the {d_in} inputs of a row")
        groups = weight.unflatten(1, (-1, size))
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        scale = torch.where(scale > 0, scale, 1.0)  # a group of zeros
        return cls(scale, (-low / scale).round(), bits, size)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """``scale`` and ``zero`` of every weight, ``[d_out, d_in]``."""
        return self.scale.repeat_interleave(self.group_size, 1), self.zero.repeat_interleave(self.group_size, 1)

    def quantized(self, codes: Tensor, like: Tensor) -> Quantized:
        """The weight with these codes ``[d_out, d_in]``, in the shape and dtype of ``like``."""
        scale, zero = self.expanded()
        weight = (scale * (codes - zero)).to(like.dtype).reshape(like.shape)
        return Quantized(weight, codes.to(torch.uint8), self.scale, self.zero, self.bits, self.group_size)


def nearest_code(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The code of the nearest point."""
    return (weight / scale + zero).round_().clamp_(0, 2**bits - 1)


def require_weight(weight: object) -> Tensor:
    """Require a matrix, or a kernel, of finite numbers.

    Raises:
        TypeError: it is no floating tensor.
        ValueError: it has fewer than two dimensions, or holds NaN or inf.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight must be a real floating-point tensor, not {type(weight).__name__}")
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(f"weight of shape {tuple(weight.shape)} must be a matrix or a kernel")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"weight of shape {tuple(weight.shape)} holds NaN or inf: it cannot be put on a grid")
    return weight.detach()


def round_to_nearest(weight: Tensor, bits: int, group_size: int | None = None) -> Quantized:
    """Round every weight to the nearest point of its grid: the baseline that needs no moments.

    Args:
        weight: ``[d_out, d_in]``, or a convolution's kernel, whose rows are flattened.
        bits: 1 to 8.
        group_size: weights of a row that share a grid; None for the whole row.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """
    weight = require_weight(weight)
    matrix = weight.flatten(1).double()
    grid = Grid.of(matrix, bits, group_size)
    return grid.quantized(nearest_code(matrix, *grid.expanded(), bits), weight)
