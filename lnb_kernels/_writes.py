"""What the native kernels check of the memory that they write, for the tensors that the reference writes.

PyTorch's own operations notice neither that two tensors of a list share memory nor, before they have written to others, that
one may not be written. Only metadata is read; no device is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lnb_kernels._checks import PLAIN, is_wrapper

Named = Mapping[str, Sequence[Tensor | None] | Tensor | None]
"""Lists of tensors, or single ones, by the names of the arguments."""


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
    found = [extent for name in named for extent in _extents({name: named[name]}, name in written)]
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


def require_one_kind(op: str, written: Named, **read: object) -> None:
    """Refuse plain tensors that are written beside tensors without memory of their own, as fake ones.

    A subclass that answers PyTorch's dispatcher runs the call as often as it wants, or breaks it off half-way.

    Args:
        op: how the error begins.
        written: the lists of tensors that are written, by their names.
        read: the other arguments, by their names: lists, tensors, or anything else, which does not count.

    Raises:
        TypeError: some but not all of the written tensors, or only others, are of such a subclass.
    """
    everything = (*written.values(), *read.values())
    lists = [value if isinstance(value, (list, tuple)) else (value,) for value in everything]
    types = set().union(*(map(type, values) for values in lists)) - PLAIN
    if not any(map(is_wrapper, types)):
        return
    plain = [name for name, value in _entries(written) if not is_wrapper(type(value))]
    if not plain:
        return
    name, wrapper = next(entry for entry in _entries({**written, **read}) if is_wrapper(type(entry[1])))
    raise TypeError(
        f"{op}: {name} is a {type(wrapper).__name__}, but {plain[0]}, which is written, is a plain tensor; use plain "
        "tensors, or write to tensors of that class"
    )


def _entries(named: Mapping[str, object]) -> list[tuple[str, Tensor]]:
    """Tensors by name, and those of lists by name and position."""
    found: list[tuple[str, object]] = []
    for name, value in named.items():
        if isinstance(value, (list, tuple)):
            found += [(f"{name}[{i}]", entry) for i, entry in enumerate(value)]
        else:
            found.append((name, value))
    return [(name, value) for name, value in found if isinstance(value, Tensor)]


def require_mutable(written: Named) -> None:
    """Raise ``RuntimeError`` where one is an inference tensor, outside ``torch.inference_mode()``."""
    if torch.is_inference_mode_enabled():
        return
    for name, tensor in _entries(written):
        if tensor.is_inference():
            raise RuntimeError(
                f"{name} is an inference tensor, which is written under torch.inference_mode() only; use .clone() to get "
                "one that can be"
            )


def require_aligned(name: str, address: int, size: int, width: int) -> None:
    """Raise ``ValueError`` where ``size`` entries of ``width`` bytes have no memory, or are not aligned to their dtype."""
    if size and not address:
        raise ValueError(f"{name} has entries but a null pointer; pass a tensor whose memory is allocated")
    if address % width:
        raise ValueError(
            f"{name} is not aligned to its dtype: its address {address} is no multiple of {width}; use .clone() to get "
            "one that is"
        )


def _extents(named: Named, written: bool) -> list[_Extent]:
    found = []
    for name, tensor in _entries(named):
        if tensor.is_meta or tensor.numel() == 0:
            continue
        size = tensor.numel()
        if not tensor.is_contiguous():
            size = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        begin = tensor.data_ptr()
        if begin == 0:
            raise ValueError(f"{name} has entries but a null pointer; pass a tensor whose memory is allocated")
        end = begin + size * tensor.element_size()
        found.append(_Extent(begin, end, name, tensor, written))
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
