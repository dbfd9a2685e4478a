"""Triton's interpreter with correct bfloat16, and with loop bounds that current numpy accepts.

numpy has no bfloat16, so the interpreter (triton 3.6, 3.7) keeps its bits in ``uint16`` and then computes on these integers. Here
each operation on bfloat16 widens its operands to float32 (exact), computes, and rounds to nearest even, as hardware does.

A scalar of the interpreter is an array ``[1]``. Triton 3.6 passes that to ``int()`` where a loop needs its bounds, which
numpy 2.4 refuses; here it is unpacked first, as triton 3.7 does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 ``bits``."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bits nearest to float32 ``values``, ties to even; every NaN becomes the quiet NaN."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _as_float32(handle: Any) -> Any:
    """``handle`` in float32 if it holds 16-bit floats (fp16 too: numpy's own product of these is very slow)."""
    if _is_bf16(handle):
        return Handle(widen(handle.data), tl.float32)
    return Handle(handle.data.astype(np.float32), tl.float32) if handle.dtype.scalar == tl.float16 else handle


def install() -> None:
    """Repair the interpreter of this process; a second call changes nothing."""
    if hasattr(Builder, "_bf16_repaired"):
        return
    cast, binary, dot = Builder.cast_impl, Builder.binary_op, Builder.create_dot

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        to_bf16 = target.scalar == tl.bfloat16
        if _is_bf16(source) and not to_bf16:
            source = _as_float32(source)
            return source if target.scalar == tl.float32 else cast(self, source, target)
        if to_bf16 and not _is_bf16(source):
            return Handle(narrow(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, target)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if not _is_bf16(left):
            return binary(self, left, right, op)
        result = op(widen(left.data), widen(right.data))
        return Handle(result, tl.int1) if result.dtype == np.bool_ else Handle(narrow(result), tl.bfloat16)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _as_float32(a), _as_float32(b), *rest)

    patch_tensor = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    Builder.cast_impl, Builder.binary_op, Builder.create_dot = cast_impl, binary_op, create_dot
    interpreter._patch_lang_tensor = patch_lang_tensor
    Builder._bf16_repaired = True
