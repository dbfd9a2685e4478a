"""Two-sided directions on the CPU: all layers in one call of the native module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels import _native
from lnb_kernels._writes import require_aligned
from lnb_kernels.two_sided import reference

LARGEST_BLOCK = 256
"""Side of a block up to which the native products, which keep a strip of it in the first cache, are faster than the BLAS."""


def two_sided_directions_(layers: Sequence[reference.LayerTensors]) -> Tensor:
    """As :func:`lnb_kernels.two_sided.reference.two_sided_directions_`; what the kernel does not take is left to it."""
    taken = list(map(_is_taken, layers))
    if all(taken):
        return _by_kernel(layers)
    ours = [layer for layer, mine in zip(layers, taken, strict=True) if mine]
    theirs = [layer for layer, mine in zip(layers, taken, strict=True) if not mine]
    # The reference goes first: it needs memory and may fail, and then nothing of ours is written. What the kernel would
    # refuse is refused before that.
    reference.require_apart(layers)
    for i, (layer, mine) in enumerate(zip(layers, taken, strict=True)):
        for name, tensor in zip(reference.LISTS, layer, strict=True):
            if mine and tensor is not None:
                require_aligned(f"{name}[{i}]", tensor.data_ptr(), tensor.numel(), tensor.element_size())
    sums_there = iter(reference.two_sided_directions_(theirs).split(list(map(_matrices, theirs))))
    sums_here = iter(_by_kernel(ours).split(list(map(_matrices, ours))))
    return torch.cat([next(sums_here if mine else sums_there) for mine in taken])


def _by_kernel(layers: Sequence[reference.LayerTensors]) -> Tensor:
    addresses, shapes = [], []
    kept = []  # copies in a contiguous layout, until the call
    for layer in layers:
        weight, _, inverse, _, root, _, _ = layer
        tensors = [None if t is None else t.resolve_neg().contiguous() for t in layer]
        kept.append(tensors)
        addresses.append([0 if t is None else t.data_ptr() for t in tensors])
        rows, inputs = weight.shape[-2:]
        shapes.append([_matrices(layer), rows, inputs, inverse.shape[-1], root.shape[-1]])
    sums = _native.module().two_sided_directions(addresses, shapes, torch.get_num_threads())
    return torch.tensor(sums, dtype=torch.float64).view(-1, 4)


def _matrices(layer: reference.LayerTensors) -> int:
    return layer[0].shape[:-2].numel()


def _is_taken(layer: reference.LayerTensors) -> bool:
    weight, bias, inverse, mean, root, *of_agreement = layer
    if any(t is not None and t.dtype != torch.float64 for t in of_agreement):
        return False
    if any(t is not None and t.dtype != torch.float32 for t in layer[:5]) or (bias is None) != (mean is None):
        return False
    if any(t is not None and (t.is_neg() or not t.is_contiguous()) for t in (weight, bias)):
        return False  # they are written
    return max(inverse.shape[-1], root.shape[-1]) <= LARGEST_BLOCK and weight.numel() > 0
