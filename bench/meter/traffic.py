"""Bytes that the CUDA module's kernels move, from what their launchers are given; ``tests/cusim/test_traffic.py`` counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_WIDTHS = (8, 4, 2, 2)  # of the module's types, by their numbers
_SIZES = {"FLOAT64": 8, "FLOAT32": 4, "BFLOAT16": 2, "FLOAT16": 2}


def cuda_traffic(function: str, args: Sequence[Any]) -> tuple[int, int]:
    """Bytes read and written, and FLOPs of products, of one call of the module's ``function``."""
    return _TRAFFIC[function](args)


def moment_flops(op: str, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """FLOPs of the second moments among what a layer's op returned: half of every symmetric product, of patches too."""
    if not op.endswith(("second_moment", "_backward")):
        return 0
    moments = [r for r in results if r.dim() >= 2 and r.shape[-1] == r.shape[-2] and r.dtype == torch.float32]
    moments = [r for r in moments if r.dim() >= 3 or op.endswith("second_moment")]
    if "conv2d" in op:
        rows = inputs[0].shape[0] * inputs[0].shape[-1] * inputs[0].shape[-2]
    else:
        rows = max(x.numel() // x.shape[-1] for x in inputs[:2])
    return sum(rows * moment.numel() for moment in moments)


def _size(kind: Any) -> int:
    return _SIZES[kind.name]


def _ema(args: Sequence[Any]) -> tuple[int, int]:
    _, x, _, y, sizes, *_ = args
    return sum(sizes) * (2 * _size(x) + _size(y)), 0


def _ema_combined(args: Sequence[Any]) -> tuple[int, int]:
    _, x, _, y, _, sizes, *_ = args
    return sum(sizes) * (3 * _size(x) + _size(y)), 0


def _dot(args: Sequence[Any]) -> tuple[int, int]:
    xs, x, ys, y, sizes, *_ = args
    return sum(n * (_size(x) + (0 if a == b else _size(y))) for a, b, n in zip(xs, ys, sizes, strict=True)), 0


def _segment_sums(args: Sequence[Any]) -> tuple[int, int]:
    first = args[0]
    return 8 * (first[-1] + len(first) - 1), 0


def _apply(args: Sequence[Any]) -> tuple[int, int]:
    _, x, _, y, sizes, *_ = args
    return sum(sizes) * (2 * _size(x) + _size(y)), 0


def _apply_master(args: Sequence[Any]) -> tuple[int, int]:
    _, _, copy, _, y, sizes, *_ = args
    return sum(sizes) * (8 + _size(copy) + _size(y)), 0


def _all_finite(args: Sequence[Any]) -> tuple[int, int]:
    _, x, sizes, *_ = args
    return sum(sizes) * _size(x), 0


def _moment_flags(args: Sequence[Any]) -> tuple[int, int]:
    _, counts, sides, *_ = args
    return sum(8 * count * side for count, side in zip(counts, sides, strict=True)), 0


def _fused_direct(args: Sequence[Any]) -> tuple[int, int]:
    """Gradients and averages are read once, averages and directions written; the blocks of a layer come from memory once."""
    layers, gradient, direction, precision, _, partials, *_ = args
    moved = 8 * partials
    flops = 0
    for *_, matrices, rows, inputs, size, side, _ in layers:
        entries = matrices * rows * inputs
        moved += entries * (_size(gradient) + 8 + _size(direction)) + 4 * matrices * (inputs * size + rows * side)
        flops += 2 * entries * (size + side)
    return moved, flops * (3 if precision.name == "TF32X3" else 1)


def _fused_finish(args: Sequence[Any]) -> tuple[int, int]:
    _, _, _, partials, rows, *_ = args
    return 8 * partials + rows * (16 + 8 + 4 + 24), 0


def _fused_apply(args: Sequence[Any]) -> tuple[int, int]:
    moved = 0
    for move, _, copy, parameter, _, direction, _, columns, _, _, size, *_ in args[0]:
        theta = 8 + _WIDTHS[parameter] if copy else 2 * _WIDTHS[parameter]
        kept = 16 if move == 2 else 0
        moved += size * (theta + _WIDTHS[direction] + kept) + (4 * size // columns if move == 0 else 0)
    return moved, 0


_TRAFFIC: dict[str, Callable[[Sequence[Any]], tuple[int, int]]] = {
    "ema": _ema,
    "ema_combined": _ema_combined,
    "dot": _dot,
    "segment_sums": _segment_sums,
    "apply": _apply,
    "apply_master": _apply_master,
    "all_finite": _all_finite,
    "moment_flags": _moment_flags,
    "fused_direct": _fused_direct,
    "fused_finish": _fused_finish,
    "fused_apply": _fused_apply,
}
