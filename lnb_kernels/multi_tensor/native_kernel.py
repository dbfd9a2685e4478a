"""The multi-tensor ops by the native CPU kernels: one call for all tensors of a dtype pair.

Pairs that the kernels do not take - strides that differ or leave gaps, float64 beside another dtype - go to the
reference, in the same call: first, since it needs memory and may fail. All checks of memory come before the first write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _native
from lnb_kernels._writes import require_mutable, require_writable
from lnb_kernels.multi_tensor import reference
from lnb_kernels.multi_tensor.grouping import (
    Group,
    at,
    native_type,
    partition,
    put,
    require_disjoint,
    require_memory,
    separate,
)


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.all_finite`."""
    native = _native.module()
    groups, rest = partition(native, {"tensors": tensors}, lambda _: True)
    threads = torch.get_num_threads()
    finite = all(native.all_finite(group.addresses[0], group.types[0], group.sizes, threads) for group in groups)
    if finite and rest:
        return reference.all_finite(at(tensors, rest))
    return torch.tensor(finite)


def ema_combined_(
    averages: Sequence[Tensor],
    outputs: Sequence[Tensor],
    values: Sequence[Tensor],
    beta: float,
    shares: Tensor,
    take: float,
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.multi_tensor.reference.ema_combined_`."""
    if ok is not None and not ok:
        require_writable({"averages": averages, "values": values, "out": outputs}, ("averages", "out"))
        reference.ema_combined_(averages, outputs, values, beta, shares, take, ok)
        return
    native = _native.module()
    lists = {"averages": averages, "values": values, "out": outputs}
    groups, rest = separate(native, lists, lambda x, y, _: native.combines(x, y), {"averages", "out"})
    factors = shares.tolist()
    if rest:
        reference.ema_combined_(
            at(averages, rest), at(outputs, rest), at(values, rest), beta, shares[rest], take, None
        )  # fmt: skip
    for group in groups:
        of_group = [factors[i] for i in group.positions]
        of_averages, of_values, of_outputs = group.addresses
        native.ema_combined(
            of_averages, group.types[0], of_values, group.types[1], of_outputs, group.sizes, beta, of_group, take,
            torch.get_num_threads(),
        )  # fmt: skip


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.dot`."""
    native = _native.module()
    groups, rest = partition(native, {"xs": xs, "ys": ys}, native.supported)
    products = [0.0] * len(xs)
    for group in groups:
        found = native.dot(*_operands(group), torch.get_num_threads())
        put(products, group.positions, found)
    if rest:
        put(products, rest, reference.dot(at(xs, rest), at(ys, rest)).tolist())
    if layers is not None:
        totals = [0.0] * (max(layers) + 1)
        for layer, product in zip(layers, products, strict=True):
            totals[layer] += product
        products = totals
    return torch.tensor(products, dtype=torch.float64)


def squared_row_norms(tensors: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.squared_row_norms`; one call for tensors of one dtype, each contiguous."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not all(tensor.is_contiguous() and not tensor.is_neg() for tensor in tensors):
        return reference.squared_row_norms(tensors, rows)
    native = _native.module()
    norms = torch.empty(sum(rows), dtype=torch.float64)
    native.squared_row_norms(
        list(map(Tensor.data_ptr, tensors)), native_type(native, dtypes.pop()), list(rows),
        [tensor.numel() // max(1, n) for tensor, n in zip(tensors, rows, strict=True)], norms.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return norms


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
    native = _native.module()
    groups, rest = separate(native, {"params": params, "directions": directions}, native.supported, {"params"})
    factors = scales.tolist()
    rate = lr if lr_tensor is None else lr_tensor.item()
    decay = weight_decay if weight_decay_tensor is None else weight_decay_tensor.item()
    if rest:
        reference.apply_(at(params, rest), at(directions, rest), scales[rest], rate, None, decay, None, None)
    for group in groups:
        of_group = [factors[i] for i in group.positions]
        native.apply(*_operands(group), of_group, rate, decay, torch.get_num_threads())


def apply_master_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    weight_decay_tensor: Tensor | None,
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.multi_tensor.reference.apply_master_`."""
    if ok is None or ok:
        native = _native.module()
        lists = {"masters": masters, "params": params, "directions": directions}
        groups, rest = partition(native, lists, lambda *_: True)  # only to look at their memory
        if rest:
            require_writable(lists, ("masters", "params"))
        else:
            require_memory(lists, groups)
            require_disjoint(native, groups, lists, ("masters", "params"))
            require_mutable({"params": params})
        apply_(masters, directions, scales, lr, lr_tensor, weight_decay, weight_decay_tensor, None)
        reference.write(params, masters)


def _operands(group: Group) -> tuple[Any, ...]:
    """Addresses, types and sizes of a pair of lists, as every native function takes them first."""
    return group.addresses[0], group.types[0], group.addresses[1], group.types[1], group.sizes
