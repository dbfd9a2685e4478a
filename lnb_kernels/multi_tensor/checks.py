"""Argument checks of the multi-tensor ops. They read metadata only, and run before anything is written.

A model has hundreds of tensors, so the usual case is decided by a few set comprehensions; the tensor at fault is looked
for only once one is known to exist.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels._checks import DTYPES, PLAIN, floating_tensor, number, same_device

_DTYPES = set(DTYPES)


def tensors(op: str, name: str, values: Sequence[Tensor]) -> None:
    """``values`` is a list of dense floating tensors on one device.

    Raises:
        TypeError: it is no list or tuple, or holds something else.
        ValueError: the devices differ.
    """
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{op}: {name} must be a list of tensors, got {type(values).__name__}")
    if (
        {type(value) for value in values} <= PLAIN
        and {value.dtype for value in values} <= _DTYPES
        and {value.layout for value in values} <= {torch.strided}
        # Last, and not on the CPU: every question for a device makes a new object.
        and (all(value.is_cpu for value in values) or len({value.device for value in values}) <= 1)
    ):
        return
    for i, value in enumerate(values):
        floating_tensor(op, f"{name}[{i}]", value)
        same_device(op, f"{name}[{i}]", value, f"{name}[0]", values[0])


def alike(op: str, **lists: Sequence[Tensor]) -> None:
    """All lists are as :func:`tensors` wants them, as long as the first, and agree with it in every shape.

    Raises:
        TypeError: as :func:`tensors`.
        ValueError: lengths, shapes or devices differ.
    """
    for name, values in lists.items():
        tensors(op, name, values)
    (first_name, first), *others = lists.items()
    shapes = [value.shape for value in first]
    for name, values in others:
        if len(values) != len(first):
            raise ValueError(
                f"{op}: {name} has {len(values)} tensors and {first_name} has {len(first)}; allowed is as many"
            )
        if not values:
            continue
        same_device(op, f"{name}[0]", values[0], f"{first_name}[0]", first[0])
        if [value.shape for value in values] == shapes:
            continue
        for i, (value, shape) in enumerate(zip(values, shapes, strict=True)):
            if value.shape != shape:
                raise ValueError(
                    f"{op}: {name}[{i}] has shape {tuple(value.shape)}, allowed is the shape of {first_name}[{i}], "
                    f"{tuple(shape)}"
                )


def flag(op: str, ok: Tensor | None, values: Sequence[Tensor]) -> None:
    """``ok`` is None or a bool tensor ``[]`` beside the tensors."""
    if ok is None:
        return
    if not isinstance(ok, Tensor) or ok.dtype != torch.bool:
        raise TypeError(f"{op}: ok must be None or a bool tensor [], got {getattr(ok, 'dtype', type(ok).__name__)}")
    if ok.layout != torch.strided:
        raise TypeError(f"{op}: ok has layout {ok.layout}; only dense (torch.strided) tensors are allowed")
    if ok.dim() != 0:
        raise ValueError(f"{op}: ok has shape {tuple(ok.shape)}, allowed is []")
    if values:
        same_device(op, "ok", ok, "the first tensor", values[0])


def layers(op: str, values: Sequence[int] | None, count: int) -> None:
    """``values`` is None or ``count`` ints, each in ``[0, count)``.

    Raises:
        TypeError: no list or tuple of ints.
        ValueError: another number of them, or one is out of range.
    """
    if values is None:
        return
    if not isinstance(values, (list, tuple)) or any(type(value) is not int for value in values):
        raise TypeError(f"{op}: layers must be None or a list of ints, got {values!r}")
    if len(values) != count:
        raise ValueError(f"{op}: layers has {len(values)} entries, allowed is one per pair, {count}")
    for value in values:
        if not 0 <= value < count:
            raise ValueError(f"{op}: layers has the entry {value}; allowed are ints in [0, {count})")


def row_counts(op: str, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
    """``rows`` has one int per tensor that divides its number of entries.

    Raises:
        TypeError: no list or tuple of ints.
        ValueError: another number of them, or one does not divide.
    """
    if not isinstance(rows, (list, tuple)) or any(type(value) is not int for value in rows):
        raise TypeError(f"{op}: rows must be a list of ints, got {rows!r}")
    if len(rows) != len(tensors):
        raise ValueError(f"{op}: rows has {len(rows)} entries, allowed is one for each of tensors, {len(tensors)}")
    for i, (value, tensor) in enumerate(zip(rows, tensors, strict=True)):
        if value < 0 or (tensor.numel() % value if value else tensor.numel()):
            raise ValueError(
                f"{op}: rows[{i}] is {value}; allowed are numbers of equal rows of the {tensor.numel()} entries of tensors[{i}]"
            )


def rate(op: str, name: str, value: float | Tensor, tensors: Sequence[Tensor]) -> tuple[float, Tensor | None]:
    """A number, or a 0-dim tensor that stays on its device: ``(number, tensor or None)``.

    Raises:
        TypeError: neither.
        ValueError: a tensor with dimensions, or without a value beside ``tensors`` that have some; or a number that is not
            finite.
    """
    if isinstance(value, Tensor):
        floating_tensor(op, name, value)
        if value.dim() != 0:
            raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, allowed is [] or a number")
        if value.is_meta and tensors and not tensors[0].is_meta:
            raise ValueError(f"{op}: {name} is on meta, where it has no value; use a number, or {tensors[0].device}")
        return 0.0, value
    return number(op, name, value, "a number or a 0-dim tensor"), None


def factors(op: str, name: str, value: Tensor, tensors_name: str, tensors: Sequence[Tensor]) -> None:
    """``value`` is a floating tensor ``[n]`` beside the ``n`` tensors.

    Raises:
        TypeError: no floating tensor.
        ValueError: another shape or device.
    """
    floating_tensor(op, name, value)
    if value.shape != (len(tensors),):
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, allowed is one per tensor, ({len(tensors)},)")
    if tensors:
        same_device(op, name, value, f"{tensors_name}[0]", tensors[0])


def share(op: str, name: str, value: float) -> float:
    """A number in [0, 1].

    Raises:
        TypeError: no number.
        ValueError: outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number in [0, 1], got {value!r}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{op}: {name}={value!r} is not allowed; it must be in [0, 1]")
    return float(value)
