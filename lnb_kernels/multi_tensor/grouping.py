"""Which tensors of a call a native kernel takes together, and which are left to the reference.

A kernel works on dense memory and one dtype per list. Lists are read side by side, so memory order is free where it is
the same in all of them and has no gaps, as in channels_last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lnb_kernels._writes import require_aligned, require_writable

_NAMES = {
    torch.float64: "FLOAT64",
    torch.float32: "FLOAT32",
    torch.bfloat16: "BFLOAT16",
    torch.float16: "FLOAT16",
}
_Dtypes: TypeAlias = tuple[torch.dtype, ...]


@dataclass
class Group:
    """Tensors of one dtype per list, by their position in the caller's lists."""

    positions: Sequence[int]
    types: list[Any]  # of the native module, one per list
    addresses: list[list[int]]  # one list per list
    sizes: list[int]


def native_type(native: Any, dtype: torch.dtype) -> Any:
    """``dtype`` as the native module names it."""
    return getattr(native.Type, _NAMES[dtype])


def partition(
    native: Any, named: dict[str, Sequence[Tensor]], supported: Callable[..., bool]
) -> tuple[list[Group], list[int]]:
    """Groups that the native kernels take, and the positions of what they do not.

    Args:
        native: the module whose types the groups carry.
        named: the caller's lists by their names: equally long, with tensors that agree in shape, position by position.
        supported: whether there is a kernel for such types, one per list.

    Raises:
        ValueError: the tensors are not all of one group, and one of a group has no memory or is not aligned to its dtype.
            (The kernels look at that themselves, but only when others have been written.)
    """
    lists = list(named.values())
    kinds = [{tensor.dtype for tensor in tensors} for tensors in lists]
    if all(len(kind) == 1 for kind in kinds) and all(
        all(map(Tensor.is_contiguous, tensors)) and True not in map(Tensor.is_neg, tensors) for tensors in lists
    ):
        # The usual case: one group, in the caller's order.
        rest: list[int] = []
        members: dict[_Dtypes, Sequence[int]] = {tuple(kind.pop() for kind in kinds): range(len(lists[0]))}
    else:
        members, rest = _sort_out(lists)
    groups = []
    for dtypes, positions in members.items():
        types = [native_type(native, dtype) for dtype in dtypes]
        if supported(*types):
            of_group = [at(tensors, positions) for tensors in lists]
            sizes = list(map(Tensor.numel, of_group[0]))
            addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in of_group]
            groups.append(Group(positions, types, addresses, sizes))
        else:
            rest = [*rest, *positions]
    if len(groups) + bool(rest) > 1:
        require_memory(named, groups)
    return groups, rest


def separate(
    native: Any, named: dict[str, Sequence[Tensor]], supported: Callable[..., bool], written: Collection[str]
) -> tuple[list[Group], list[int]]:
    """:func:`partition`, refused where written memory is shared. A kernel looks at its own group's, and the rest goes first.

    Raises:
        ValueError: as :func:`partition`, or the tensors are not all of one group, and two share memory of which one is written.
        RuntimeError: they are not, and an inference tensor is to be written outside ``torch.inference_mode()``.
    """
    groups, rest = partition(native, named, supported)
    if rest:
        require_writable(named, written)
    elif len(groups) > 1:
        require_disjoint(native, groups, named, written)
    return groups, rest


def require_memory(named: dict[str, Sequence[Tensor]], groups: Sequence[Group]) -> None:
    """Raise ``ValueError`` where a tensor of a group has no memory, or is not aligned to its dtype."""
    for group in groups:
        for (name, tensors), addresses in zip(named.items(), group.addresses, strict=True):
            width = tensors[group.positions[0]].element_size()
            for position, address, size in zip(group.positions, addresses, group.sizes, strict=True):
                require_aligned(f"{name}[{position}]", address, size, width)


def _sort_out(lists: Sequence[Sequence[Tensor]]) -> tuple[dict[_Dtypes, Sequence[int]], list[int]]:
    members: dict[_Dtypes, list[int]] = {}
    rest: list[int] = []
    for i, tensors in enumerate(zip(*lists, strict=True)):
        first = tensors[0]
        same_order = all(tensor.stride() == first.stride() for tensor in tensors)
        dense = (same_order and torch._debug_has_internal_overlap(first) == 0) or all(
            map(Tensor.is_contiguous, tensors)
        )
        # Memory of a negated view holds its entries with the other sign; kernels read memory.
        if dense and not any(map(Tensor.is_neg, tensors)):
            members.setdefault(tuple(tensor.dtype for tensor in tensors), []).append(i)
        else:
            rest.append(i)
    return dict(members), rest


def require_disjoint(
    native: Any, groups: list[Group], named: dict[str, Sequence[Tensor]], written: Collection[str]
) -> None:
    """Raise ``ValueError`` where memory that a native kernel writes is reached through another tensor too.

    Args:
        native: the module of the kernel.
        groups: what :func:`partition` made of the lists.
        named: the lists.
        written: names of those that are written.
    """
    if not groups:
        return
    memory = []
    for place, (name, tensors) in enumerate(named.items()):
        addresses, extents = [0] * len(tensors), [0] * len(tensors)
        for group in groups:
            width = tensors[group.positions[0]].element_size()
            put(addresses, group.positions, group.addresses[place])
            put(extents, group.positions, [size * width for size in group.sizes])
        memory.append(native.Memory(name, addresses, extents, name in written))
    native.require_disjoint_writes(memory)


def rate_beside(rate: tuple[float, Tensor | None], device: torch.device) -> tuple[float, Tensor | None]:
    """A rate as a kernel on ``device`` takes it: a number, or a tensor there. The host waits for no device.

    Args:
        rate: a number, or the tensor that stands in for it. One on the CPU is read; one on another accelerator is copied.
        device: of the kernel.
    """
    number, tensor = rate
    if tensor is None:
        return number, None
    if tensor.device == device:
        return number, tensor.resolve_neg()
    if tensor.is_cpu:
        return float(tensor.item()), None
    return number, tensor.to(device, non_blocking=True).resolve_neg()


def at(tensors: Sequence[Tensor], positions: Sequence[int]) -> Sequence[Tensor]:
    """The tensors at these positions, in the order of the positions."""
    return tensors if positions == range(len(tensors)) else [tensors[i] for i in positions]


def put(target: list[Any], positions: Sequence[int], values: Sequence[Any]) -> None:
    """``target[position] = value`` for each pair."""
    if isinstance(positions, range):
        target[:] = values
    else:
        for i, value in zip(positions, values, strict=True):
            target[i] = value
