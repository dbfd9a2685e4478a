"""Tensor descriptors: what the copy engine of Hopper and later (TMA) needs to fetch blocks of rows by itself.

A load by descriptor is one instruction of one thread for a whole block; the engine computes addresses and fills with
zeros what lies outside of the matrix. So the product loops are rid of pointers, masks and their registers.
"""

from __future__ import annotations

import math
from typing import Any

import torch

ALIGNMENT = 16  # bytes, of the base and of every stride but the last


def copies_in_blocks(x: torch.Tensor) -> bool:
    """Whether the copy engine can fetch blocks of ``x`` ``[batch, n, d]``: aligned rows that do not overlap, not empty."""
    batch, n, d = x.shape
    size = x.element_size()
    rows, matrices = x.stride(1), x.stride(0)
    return (
        x.numel() > 0
        and x.stride(2) == 1
        and x.data_ptr() % ALIGNMENT == 0
        and rows >= d
        and rows * size % ALIGNMENT == 0
        and (batch == 1 or (matrices >= n * rows and matrices % rows == 0) or side_by_side(x))
    )


def side_by_side(x: torch.Tensor) -> bool:
    """Whether the matrices of ``x`` ``[batch, n, d]`` are aligned blocks of the columns of one, not one after the other."""
    batch, _, d = x.shape
    rows, matrices = x.stride(1), x.stride(0)
    return (
        batch > 1
        and d <= matrices
        and matrices * batch <= rows
        and rows % matrices == 0
        and matrices * x.element_size() % ALIGNMENT == 0
    )


def loads_in_vectors(x: torch.Tensor) -> bool:
    """Whether the compiler sees that threads can load 16 bytes of ``x`` ``[batch, n, d]`` at a time, by rows or columns.

    It knows of a stride whether 16 elements divide it, not more.
    """
    strides = [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    others = [stride for stride in strides if stride != 1]
    return len(others) < len(strides) and all(stride % 16 == 0 for stride in others) and x.data_ptr() % ALIGNMENT == 0


def in_planes(x: torch.Tensor) -> bool:
    """Whether ``x`` ``[batch, images, area, d]`` consists of planes: ``area`` neighbours, then those of the next column."""
    return x.stride(2) == 1 and (x.shape[3] == 1 or x.stride(3) == x.shape[2])


def plane_unit(x: torch.Tensor) -> int:
    """The largest power of two up to 16 that divides the area of planes ``x`` and the strides of images and matrices.

    That many neighbouring pixels belong to one image, at an address that is a multiple of them.
    """
    strides = [stride for stride, size in zip(x.stride()[:2], x.shape[:2], strict=True) if size > 1]
    return math.gcd(16, x.shape[2], *strides)


def block_descriptor(x: torch.Tensor, rows: int, columns: int) -> Any:
    """A descriptor of ``x`` ``[batch, n, d]`` for blocks ``[1, rows, columns]``; :func:`copies_in_blocks` must hold.

    Strides must fall from dimension to dimension, so one of matrices :func:`side_by_side` is ``[n, batch, d]``.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, n, d = x.shape
    if side_by_side(x):
        return TensorDescriptor(x, [n, batch, d], [x.stride(1), x.stride(0), 1], [rows, 1, columns])
    matrices = x.stride(0) if batch > 1 else n * x.stride(1)  # the stride of a dimension of size 1 means nothing
    return TensorDescriptor(x, list(x.shape), [matrices, x.stride(1), 1], [1, rows, columns])
