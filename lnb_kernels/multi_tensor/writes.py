"""What the native kernels check of the memory that they write, for the tensors that go by the reference.

PyTorch's own operations notice neither that two tensors of a list share memory nor, before they have written to others, that
one may not be written. Only metadata is read; no device is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Named = dict[str, Sequence[Tensor]]


@dataclass(frozen=True)
class _Extent:
    """From the first byte of a tensor to its last. A strided tensor does not own all of them."""

    begin: int
    end: int
    name: str
    tensor: Tensor
    written: bool


def require_writable(named: Named, written: Collection[str]) -> None:
    """Refuse a call whose result would depend on the order of its writes, or that PyTorch would break off half-way.

    Args:
        named: the lists of tensors of the call, by their names.
        written: the names of those that it writes.

    Raises:
        ValueError: a tensor has no memory, or one that is written shares its memory with another of the call.
        RuntimeError: one is an inference tensor, outside ``torch.inference_mode()``.
    """
    require_mutable({name: named[name] for name in written})
    found = [extent for name, tensors in named.items() for extent in _extents(name, tensors, name in written)]
    if not written:
        return
    found.sort(key=lambda extent: extent.begin)
    cluster: list[_Extent] = []
    reach = 0
    for extent in found:
        if extent.begin >= reach:
            _require_apart(cluster)
            cluster = []
        cluster.append(extent)
        reach = max(reach, extent.end)
    _require_apart(cluster)


def require_mutable(written: Named) -> None:
    """Raise ``RuntimeError`` where one is an inference tensor, outside ``torch.inference_mode()``."""
    if torch.is_inference_mode_enabled():
        return
    for name, tensors in written.items():
        for i, tensor in enumerate(tensors):
            if tensor.is_inference():
                raise RuntimeError(
                    f"{name}[{i}] is an inference tensor, which is written under torch.inference_mode() only; use .clone() "
                    "to get one that can be"
                )


def _extents(name: str, tensors: Sequence[Tensor], written: bool) -> list[_Extent]:
    found = []
    for i, tensor in enumerate(tensors):
        size = tensor.numel()
        if size == 0 or tensor.is_meta:
            continue
        if not tensor.is_contiguous():
            size = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        begin = tensor.data_ptr()
        if begin == 0:
            raise ValueError(f"{name}[{i}] has entries but a null pointer; pass a tensor whose memory is allocated")
        end = begin + size * tensor.element_size()
        found.append(_Extent(begin, end, f"{name}[{i}]", tensor, written))
    return found


def _require_apart(cluster: Sequence[_Extent]) -> None:
    """Exact, for tensors whose extents touch: each marks its own entries in a map of the memory, on the CPU."""
    if len(cluster) < 2 or not any(extent.written for extent in cluster):
        return
    base = cluster[0].begin
    unit = math.gcd(*(extent.begin - base for extent in cluster), *(e.tensor.element_size() for e in cluster))
    taken = torch.zeros((max(extent.end for extent in cluster) - base) // unit, dtype=torch.bool)

    def entries(extent: _Extent) -> Tensor:
        width = extent.tensor.element_size() // unit
        strides = [stride * width for stride in extent.tensor.stride()]
        return taken.as_strided((*extent.tensor.shape, width), (*strides, 1), (extent.begin - base) // unit)

    for extent in sorted(cluster, key=lambda extent: not extent.written):
        if entries(extent).any():
            taken.zero_()
            entries(extent).fill_(True)
            other = next(e for e in cluster if e is not extent and e.written and entries(e).any())
            raise ValueError(
                f"{extent.name} and {other.name} overlap in memory, and one of them is written; give each its own memory"
            )
        if extent.written:
            entries(extent).fill_(True)
