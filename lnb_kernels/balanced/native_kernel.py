"""Balanced directions on the CPU: all layers in one call of the native module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels import _native
from lnb_kernels.balanced import reference

LARGEST_BLOCK = 256
"""Side of a block up to which the native products, which keep a strip of it in the first cache, are faster than the BLAS."""


def balanced_directions(problems: Sequence[reference.Problem]) -> list[tuple[Tensor, Tensor | None]]:
    """As :func:`lnb_kernels.balanced.reference.balanced_directions`; float64 and large blocks go by it."""
    native = _native.module()
    found: list[tuple[Tensor, Tensor | None]] = []
    addresses, shapes = [], []
    kept = []  # copies in a contiguous layout, until the call
    for problem in problems:
        weight, bias, inverse, _, root = problem
        if not _is_taken(problem):
            found.append(reference.balanced_direction(*problem))
            continue
        tensors = [None if t is None else t.contiguous() for t in problem]
        outputs = weight.new_empty(weight.shape), None if bias is None else bias.new_empty(bias.shape)
        found.append(outputs)
        kept.append(tensors)
        addresses.append([0 if t is None else t.data_ptr() for t in (*tensors, *outputs)])
        rows, inputs = weight.shape[-2:]
        shapes.append([weight.numel() // (rows * inputs), rows, inputs, inverse.shape[-1], root.shape[-1]])
    native.balanced_directions(addresses, shapes, torch.get_num_threads())
    return found


def _is_taken(problem: reference.Problem) -> bool:
    weight, bias, inverse, mean, root = problem
    if any(t is not None and t.dtype != torch.float32 for t in problem) or (bias is None) != (mean is None):
        return False
    return max(inverse.shape[-1], root.shape[-1]) <= LARGEST_BLOCK and weight.numel() > 0
