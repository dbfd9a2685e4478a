"""The multi-tensor ops by the native CPU kernels: one call for all tensors of a dtype pair.

Pairs that the kernels do not take - strides that differ or leave gaps, float64 beside another dtype - go to the
reference, in the same call. All checks of memory come before the first write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lnb_kernels import _native
from lnb_kernels.multi_tensor import reference

_NAMES = {
    torch.float64: "FLOAT64",
    torch.float32: "FLOAT32",
    torch.bfloat16: "BFLOAT16",
    torch.float16: "FLOAT16",
}

_Members: TypeAlias = dict[tuple[torch.dtype, torch.dtype], Sequence[int]]


@dataclass
class _Group:
    """Pairs of one dtype each side, by their position in the caller's lists."""

    positions: Sequence[int]
    types: tuple[Any, Any]
    xs: list[int]  # addresses
    ys: list[int]
    sizes: list[int]


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.all_finite`."""
    groups, rest = _partition(tensors, tensors)
    native = _native.module()
    threads = torch.get_num_threads()
    finite = all(native.all_finite(group.xs, group.types[0], group.sizes, threads) for group in groups)
    if finite and rest:
        return reference.all_finite(_at(tensors, rest))
    return torch.tensor(finite)


def ema_(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float, ok: Tensor | None) -> None:
    """As :func:`lnb_kernels.multi_tensor.reference.ema_`."""
    if ok is None or ok:
        _ema(averages, values, beta, with_norms=False)


def ema_squared_norms_(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float, ok: Tensor | None) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.ema_squared_norms_`."""
    if ok is None or ok:
        return _vector(_ema(averages, values, beta, with_norms=True), averages)
    return dot(averages, averages)


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.dot`."""
    groups, rest = _partition(xs, ys)
    native = _native.module()
    products = [0.0] * len(xs)
    for group in groups:
        x_type, y_type = group.types
        found = native.dot(group.xs, x_type, group.ys, y_type, group.sizes, torch.get_num_threads())
        _put(products, group.positions, found)
    if rest:
        _put(products, rest, reference.dot(_at(xs, rest), _at(ys, rest)).tolist())
    return _vector(products, (*xs, *ys))


def apply_(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    weight_decay_tensor: Tensor | None,
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.multi_tensor.reference.apply_`."""
    if ok is not None and not ok:
        return
    groups, rest = _partition(params, directions)
    native = _native.module()
    _require_disjoint(native, groups, "params", params, "directions", directions)
    factors = scales.tolist()
    rate = lr if lr_tensor is None else float(lr_tensor)
    decay = weight_decay if weight_decay_tensor is None else float(weight_decay_tensor)
    for group in groups:
        x_type, y_type = group.types
        of_group = [factors[i] for i in group.positions]
        native.apply(group.xs, x_type, group.ys, y_type, group.sizes, of_group, rate, decay, torch.get_num_threads())
    if rest:
        reference.apply_(_at(params, rest), _at(directions, rest), scales[rest], rate, None, decay, None, None)


def _ema(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float, with_norms: bool) -> list[float]:
    """Update the averages; with ``with_norms``, return their squared norms."""
    groups, rest = _partition(averages, values)
    native = _native.module()
    _require_disjoint(native, groups, "averages", averages, "values", values)
    norms = [0.0] * len(averages)
    for group in groups:
        x_type, y_type = group.types
        threads = torch.get_num_threads()
        found = native.ema(group.xs, x_type, group.ys, y_type, group.sizes, beta, with_norms, threads)
        if with_norms:
            _put(norms, group.positions, found)
    if rest:
        strided = _at(averages, rest)
        reference.ema_(strided, _at(values, rest), beta, None)
        if with_norms:
            _put(norms, rest, reference.dot(strided, strided).tolist())
    return norms


def _partition(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> tuple[list[_Group], list[int]]:
    """Groups that the native kernels take, and the positions of the pairs that they do not."""
    x_dtypes, y_dtypes = {x.dtype for x in xs}, {y.dtype for y in ys}
    if len(x_dtypes) == len(y_dtypes) == 1 and all(map(Tensor.is_contiguous, (*xs, *ys))):
        # The usual case: one group, in the caller's order.
        rest: list[int] = []
        members: _Members = {(x_dtypes.pop(), y_dtypes.pop()): range(len(xs))}
    else:
        members, rest = _sort_out(xs, ys)
    native = _native.module()
    groups = []
    for (x_dtype, y_dtype), positions in members.items():
        types = getattr(native.Type, _NAMES[x_dtype]), getattr(native.Type, _NAMES[y_dtype])
        if native.supported(*types):
            of_x, of_y = _at(xs, positions), _at(ys, positions)
            sizes = list(map(Tensor.numel, of_x))
            groups.append(
                _Group(positions, types, list(map(Tensor.data_ptr, of_x)), list(map(Tensor.data_ptr, of_y)), sizes)
            )
        else:
            rest = [*rest, *positions]
    return groups, rest


def _sort_out(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> tuple[_Members, list[int]]:
    members: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    rest: list[int] = []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        # Memory order is free where it is the same on both sides and has no gaps, as in channels_last.
        same_order = x.stride() == y.stride() and torch._debug_has_internal_overlap(x) == 0
        if same_order or (x.is_contiguous() and y.is_contiguous()):
            members.setdefault((x.dtype, y.dtype), []).append(i)
        else:
            rest.append(i)
    return dict(members), rest


def _require_disjoint(
    native: Any, groups: list[_Group], x_name: str, xs: Sequence[Tensor], y_name: str, ys: Sequence[Tensor]
) -> None:
    """Raise ``ValueError`` where memory that a native kernel writes is reached through another tensor too.

    The kernels look at the pairs of their own call before they write; here all groups are looked at together.
    """
    if len(groups) < 2:
        return
    x_bytes, y_bytes = [0] * len(xs), [0] * len(ys)
    x_addresses, y_addresses = [0] * len(xs), [0] * len(ys)
    for group in groups:
        x_width, y_width = xs[group.positions[0]].element_size(), ys[group.positions[0]].element_size()
        _put(x_addresses, group.positions, group.xs)
        _put(y_addresses, group.positions, group.ys)
        _put(x_bytes, group.positions, [size * x_width for size in group.sizes])
        _put(y_bytes, group.positions, [size * y_width for size in group.sizes])
    native.require_disjoint_writes(x_name, x_addresses, x_bytes, y_name, y_addresses, y_bytes)


def _at(tensors: Sequence[Tensor], positions: Sequence[int]) -> Sequence[Tensor]:
    return tensors if len(positions) == len(tensors) else [tensors[i] for i in positions]


def _put(target: list[Any], positions: Sequence[int], values: Sequence[Any]) -> None:
    if isinstance(positions, range):
        target[:] = values
    else:
        for i, value in zip(positions, values, strict=True):
            target[i] = value


def _vector(values: list[float], tensors: Sequence[Tensor]) -> Tensor:
    wide = torch.float64 in {tensor.dtype for tensor in tensors}
    return torch.tensor(values, dtype=torch.float64 if wide else torch.float32)
