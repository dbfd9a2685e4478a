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


def ridge(op: str, value: float, *operands: Tensor) -> float:
    """``value`` as a float, if it is a number >= 0 that is finite in the dtype in which products with ``operands`` add up.

    Raises:
        TypeError: it is no real number.
        ValueError: it is negative, NaN, or beyond that dtype.
    """
    number = non_negative(op, "ridge", value)
    wide = torch.float64 if any(operand.dtype == torch.float64 for operand in operands) else torch.float32
    largest = torch.finfo(wide).max
    if number > largest:
        raise ValueError(f"{op}: ridge={value!r} is not allowed; it must be at most {largest:.4g}, the largest {wide}")
    return number


def count(op: str, name: str, value: int) -> int:
    """``value``, if it is an int >= 0 and below ``2**31``.

    Raises:
        TypeError: it is no int.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int >= 0, got {value!r}")
    if not 0 <= value < 2**31:
        raise ValueError(f"{op}: {name}={value!r} is not allowed; it must be an int >= 0 and below 2**31")
    return value


def live_probe(op: str, name: str, probe: Tensor | None) -> bool:
    """Whether the backward pass is to give ``probe`` a gradient.

    Raises:
        TypeError: it is neither None nor a tensor, or asks for a gradient and is no dense floating tensor.
    """
    if probe is None:
        return False
    if not isinstance(probe, Tensor):
        raise TypeError(f"{op}: {name} must be None or a torch.Tensor, got {probe!r}")
    if not probe.requires_grad or not torch.is_grad_enabled():
        return False
    floating_tensor(op, name, probe)
    return True


def layer(op: str, x: object, weight: object, bias: object, shape: str) -> tuple[Tensor, Tensor]:
    """``x`` and ``weight`` of a layer, if they and ``bias`` are dense floating tensors on one device that fit each other.

    Args:
        op, x, weight, bias: as given by the caller.
        shape: of the weight in words, such as ``"[m, d]"``.

    Raises:
        TypeError: one is no dense floating tensor.
        ValueError: the weight has another number of dimensions or an empty one behind the first, or the bias is not ``[m]``,
            or the devices differ.
    """
    x, weight = floating_tensor(op, "x", x), floating_tensor(op, "weight", weight)
    if weight.dim() != shape.count(",") + 1 or 0 in weight.shape[2:]:
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}; allowed is {shape}")
    same_device(op, "weight", weight, "x", x)
    if bias is not None:
        bias = floating_tensor(op, "bias", bias)
        shape_is(op, "bias", bias, weight.shape[:1], f"m of weight {shape}")
        same_device(op, "bias", bias, "x", x)
    return x, weight


def same_dtype(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Raise ``ValueError`` unless the other tensors of a layer have the dtype of ``x``."""
    for name, value in others.items():
        if value is not None and value.dtype != x.dtype:
            raise ValueError(f"{op}: {name} has dtype {value.dtype}; it must be {x.dtype}, as x has")


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


def number(op: str, name: str, value: float, allowed: str = "a number") -> float:
    """A finite number.

    Raises:
        TypeError: no number.
        ValueError: not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be {allowed}, got {value!r}")
    return finite(op, name, value, "it must be finite")


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
