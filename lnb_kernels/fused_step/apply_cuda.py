"""``fused_step.apply_`` by the CUDA kernel: one launch for all parameters of a dtype, with masters or without.

The host reads nothing back and copies nothing to the device, so that a call can be captured in a CUDA graph. Parameters
that the kernel does not take - float64, strides that differ or leave gaps, negated views - go to the reference in the same
call: first, since it needs memory and may fail. All checks of memory come before the first write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _cuda
from lnb_kernels._writes import require_writable
from lnb_kernels.fused_step import apply_reference
from lnb_kernels.fused_step.apply_entries import (
    WRITTEN,
    Entry,
    Numbers,
    is_kernel_memory,
    takes_memory,
    width_of,
)
from lnb_kernels.multi_tensor.grouping import native_type
from lnb_kernels.scaling import largest_squarable


def apply_(lists: Mapping[str, Sequence[Tensor]], entries: Sequence[Entry], numbers: Numbers) -> None:
    """As :func:`lnb_kernels.fused_step.apply_reference.apply_`."""
    native = _cuda.module(numbers.scales.device)
    numbers = numbers.on_device()  # this name keeps the tensors alive whose addresses the kernel gets
    rates, decays = ([_rate(native, *rate) for rate in given] for given in (numbers.lr, numbers.weight_decay))
    of_others = (numbers.scales, numbers.shares, numbers.corrections, numbers.finite)
    call = native.MoveCall(
        *map(_address, (numbers.scales, numbers.shorter, *of_others[1:], numbers.ok)),
        len(numbers.scales), len(lists["gradients"]), *numbers.rule, largest_squarable(torch.float32),
    )  # fmt: skip
    readable = all(map(is_kernel_memory, of_others))
    fields = [_fields(native, entry) if readable else None for entry in entries]
    taken = [found for found in fields if found is not None]
    rest = [entry for entry, found in zip(entries, fields, strict=True) if found is None]
    if rest:
        require_writable(lists, WRITTEN)
        native.check_moves(taken, rates, decays, call)
        apply_reference.apply_(lists, rest, numbers)
    if taken:
        native.fused_apply(taken, rates, decays, call, _cuda.where(numbers.scales))


def _fields(native: Any, entry: Entry) -> tuple[int, ...] | None:
    """The entry as the native function takes it; None where the kernel does not."""
    param, master, y, row_scales, average, square, place, number, group = entry
    move = native.Move.OTHER if average is not None else native.Move.BIAS if row_scales is None else native.Move.WEIGHT
    type_of_param, type_of_y = native_type(native, param.dtype), native_type(native, y.dtype)
    if not native.moves(move, type_of_param, master is not None, type_of_y) or not takes_memory(entry):
        return None
    return (
        int(move), entry.theta.data_ptr(), 0 if master is None else param.data_ptr(), int(type_of_param),
        y.data_ptr(), int(type_of_y), _address(row_scales), 0 if row_scales is None else width_of(param), _address(average),
        _address(square), param.numel(), place, number, group,
    )  # fmt: skip


def _rate(native: Any, number: float, tensor: Tensor | None) -> tuple[float, int, Any]:
    """A number, or the place where the kernel finds it."""
    if tensor is None:
        return number, 0, native.Type.FLOAT64
    return 0.0, tensor.data_ptr(), native_type(native, tensor.dtype)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
