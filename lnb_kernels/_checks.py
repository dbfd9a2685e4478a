"""Argument checks shared by the ops: each error names the op, the argument, its value and what is allowed.

Checks read metadata only (shape, dtype, device), so they never wait for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PLAIN = {torch.Tensor, torch.nn.Parameter}  # a subclass need not have memory of its own
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which statistics of ``dtype`` inputs accumulate: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def floating_tensor(op: str, name: str, value: object) -> Tensor:
    """``value``, if it is a dense tensor of a supported floating dtype.

    Raises:
        TypeError: it is no tensor, or of another dtype or layout.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} has dtype {value.dtype}; allowed are float64, float32, bfloat16 and float16")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} has layout {value.layout}; only dense (torch.strided) tensors are allowed")
    return value


def is_wrapper(kind: type) -> bool:
    """Whether a class is one of tensors that answer PyTorch's dispatcher, and need not have memory: fake ones, for example."""
    return issubclass(kind, Tensor) and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ``ValueError`` unless both tensors live on one device."""
    if value.device != other.device:
        raise ValueError(f"{op}: {name} is on {value.device} but {other_name} is on {other.device}; use one device")


def shape_is(op: str, name: str, value: Tensor, allowed: Sequence[int], meaning: str) -> None:
    """Raise ``ValueError`` unless ``value.shape == allowed``; ``meaning`` says where the allowed shape comes from."""
    if tuple(value.shape) != tuple(allowed):
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, allowed is {tuple(allowed)} ({meaning})")


def lists_of_layers(op: str, **lists: object) -> None:
    """Require lists or tuples, as long as the first of them."""
    (first, layers), *_ = lists.items()
    for name, values in lists.items():
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{op}: {name} must be a list, got {type(values).__name__}")
        if isinstance(layers, (list, tuple)) and len(values) != len(layers):
            raise ValueError(
                f"{op}: {name} has {len(values)} entries, allowed is one for each of {first}, {len(layers)}"
            )


def at_least_1d(op: str, name: str, value: Tensor) -> None:
    """Raise ``ValueError`` for a scalar tensor."""
    if value.dim() == 0:
        raise ValueError(f"{op}: {name} is a scalar tensor; at least one dimension [..., d] is needed")


def non_negative(op: str, name: str, value: float) -> float:
    """``value`` as a float, if it is a finite number >= 0.

    Raises:
        TypeError: it is no real number.
        ValueError: it is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number >= 0, got {value!r}")
    if not value >= 0.0:
        raise ValueError(f"{op}: {name}={value!r} is not allowed; it must be a finite number >= 0")
    return finite(op, name, value, "it must be a finite number >= 0")


def finite(op: str, name: str, value: float, allowed: str) -> float:
    """``value`` as a float.

    Raises:
        ValueError: it is infinite or NaN, or an int beyond all floats.
    """
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{op}: {name}={value!r} is not allowed; {allowed}")
    return number


def divisor(op: str, name: str, value: int, of: int, what: str) -> None:
    """Raise unless ``value`` is an int >= 1 that divides ``of``, the number of ``what``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int >= 1, got {value!r}")
    if value < 1 or of % value:
        raise ValueError(f"{op}: {name}={value!r} is not allowed; it must be at least 1 and divide the {of} {what}")


def pair(op: str, name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """An int or a pair of ints as ``(height, width)``, each at least ``minimum`` and below ``2**31``.

    Raises:
        TypeError: not an int or a sequence of ints.
        ValueError: not two values, or one out of range.
    """
    values = (value, value) if isinstance(value, int) else value
    if not isinstance(values, Sequence) or any(type(entry) is not int for entry in values):
        raise TypeError(f"{op}: {name} must be an int or a pair of ints, got {value!r}")
    if len(values) == 1:
        values = (values[0], values[0])
    if len(values) != 2 or min(values) < minimum:
        raise ValueError(f"{op}: {name}={value!r} is not allowed; it must be an int or two ints, each >= {minimum}")
    if max(values) >= 2**31:
        raise ValueError(f"{op}: {name}={value!r} is not allowed; it must be an int or two ints, each below 2**31")
    return values[0], values[1]


def writable(op: str, name: str, values: Sequence[Tensor]) -> None:
    """Each tensor may be written in place.

    Raises:
        ValueError: entries of one tensor share memory (``expand``, ``as_strided``), or a tensor stands in the list twice.
        RuntimeError: autograd is recording and would miss the write.
    """
    contiguous = all(map(Tensor.is_contiguous, values))
    for i, value in enumerate(() if contiguous else values):
        if _shares_entries(value):
            raise ValueError(f"{op}: {name}[{i}] has entries that share memory; use .contiguous() to write to it")
    if len({id(value) for value in values}) != len(values):
        raise ValueError(f"{op}: {name} holds one tensor twice; each may be written once")
    if torch.is_grad_enabled() and True in {value.requires_grad for value in values}:
        raise RuntimeError(f"{op}: {name} require grad and are written in place; call it under torch.no_grad()")


def _shares_entries(tensor: Tensor) -> bool:
    """Whether two entries may be in one place: a dimension's stride lies within what smaller strides reach."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return tensor.numel() > 0
            reach += stride * (size - 1)
    return False
