"""Balanced directions on the CPU: all layers in one call of the native module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lnb_kernels import _native
from lnb_kernels.balanced import reference

LARGEST_BLOCK = 256
"""Side of a block up to which the native products, which keep a strip of it in the first cache, are faster than the BLAS."""


def balanced_directions(problems: Sequence[reference.Problem]) -> tuple[list[reference.Step], Tensor]:
    """As :func:`lnb_kernels.balanced.reference.balanced_directions`; float64 and large blocks go by it."""
    ours = [problem for problem in problems if _is_taken(problem)]
    if len(ours) == len(problems):
        return _by_kernel(ours)
    theirs = [problem for problem in problems if not _is_taken(problem)]
    solved_here = _one_by_one(ours, *_by_kernel(ours))
    solved_there = _one_by_one(theirs, *reference.balanced_directions(theirs))
    solved = [next(solved_here if _is_taken(problem) else solved_there) for problem in problems]
    return [step for step, _ in solved], torch.cat([products for _, products in solved])


def _by_kernel(problems: Sequence[reference.Problem]) -> tuple[list[reference.Step], Tensor]:
    steps: list[reference.Step] = []
    addresses, shapes = [], []
    kept = []  # copies in a contiguous layout, until the call
    for problem in problems:
        weight, bias, inverse, _, root = problem
        tensors = [None if t is None else t.contiguous() for t in problem]
        outputs = weight.new_empty(weight.shape), None if bias is None else bias.new_empty(bias.shape)
        steps.append(outputs)
        kept.append(tensors)
        addresses.append([0 if t is None else t.data_ptr() for t in (*tensors, *outputs)])
        rows, inputs = weight.shape[-2:]
        shapes.append([_matrices(problem), rows, inputs, inverse.shape[-1], root.shape[-1]])
    products = _native.module().balanced_directions(addresses, shapes, torch.get_num_threads())
    return steps, torch.tensor(products, dtype=torch.float32)


def _one_by_one(
    problems: Sequence[reference.Problem], steps: list[reference.Step], products: Tensor
) -> Iterator[tuple[reference.Step, Tensor]]:
    """The step and the products of every problem."""
    yield from zip(steps, products.split([_matrices(problem) for problem in problems]), strict=True)


def _matrices(problem: reference.Problem) -> int:
    return problem[0].shape[:-2].numel()


def _is_taken(problem: reference.Problem) -> bool:
    weight, bias, inverse, mean, root = problem
    if any(t is not None and t.dtype != torch.float32 for t in problem) or (bias is None) != (mean is None):
        return False
    return max(inverse.shape[-1], root.shape[-1]) <= LARGEST_BLOCK and weight.numel() > 0
