"""Bytes that the CUDA module's kernels move, from what their launchers are given; ``tests/cusim/test_traffic.py`` counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lnb.statistics.orthogonalize import STEPS
from lnb_kernels.refresh import AveragedGradient, InputMetric
from lnb_kernels.refresh.layers import shape_of

_WIDTHS = (8, 4, 2, 2)  # of the module's types, by their numbers
_SIZES = {"FLOAT64": 8, "FLOAT32": 4, "BFLOAT16": 2, "FLOAT16": 2}


ON_TENSOR_CORES = {"fused_direct"}
"""Functions of the module whose products are made by tensor cores; the others' are plain float32."""


def cuda_traffic(function: str, args: Sequence[Any]) -> tuple[int, int]:
    """Bytes read and written, and FLOPs of products, of one call of the module's ``function``."""
    return _TRAFFIC[function](args)


def table_traffic(op: str, args: Sequence[Any]) -> tuple[int, int] | None:
    """Bytes and FLOPs of an op whose Triton kernels reach its tensors through tables; None for other ops."""
    if op == "direct_layers_":
        directions, momentum, _, _, gradients, _, _, inverses, _, roots = args[:10]
        return direct_traffic(directions, momentum, gradients, inverses, roots, args[-1])
    if op == "finish_layers_":
        momentum, directions, *_ = args
        return 2 * _bytes(momentum) + _bytes(directions), 0
    if op == "fused_step_apply_":
        params, masters, averages, squares, _, directions, row_scales, gradients, mastered, *_ = args
        alone = [param for param, master in zip(params, mastered, strict=True) if master < 0]
        moved = _bytes(params) + _bytes(alone) + 2 * (_bytes(masters) + _bytes(averages) + _bytes(squares))
        return moved + _bytes(directions) + _bytes(row_scales) + _bytes(gradients), 0
    return None


def direct_traffic(
    directions: Sequence[Tensor],
    momentum: Sequence[Tensor],
    gradients: Sequence[Tensor],
    inverses: Sequence[Tensor],
    roots: Sequence[Tensor],
    precision: str,
) -> tuple[int, int]:
    """Bytes and FLOPs of directions by Triton."""
    sides = [c.shape[-1] + p.shape[-1] for c, p in zip(inverses, roots, strict=True)]
    flops = sum(2 * m.numel() * side for m, side in zip(momentum, sides, strict=True))
    moved = _bytes(directions) + 2 * _bytes(momentum) + _bytes(gradients) + _bytes(inverses) + _bytes(roots)
    return moved, flops * (3 if precision == "tf32x3" else 1)


def refresh_traffic(layers: Sequence[InputMetric]) -> tuple[int, int]:
    """Bytes and FLOPs of a refresh by Triton: its kernels reach the layers through tables, and read gradients twice."""
    moved = flops = 0
    for layer in layers:
        groups, blocks, side, _ = layer.inverse.shape
        moved += groups * blocks * (16 * (side + 1) ** 2 + 4 * side**2)
        flops += 2 * groups * blocks * side**3
        for own in layer.outputs:
            _, rows, inputs, output_side, size = shape_of(layer, own)
            entries, count = groups * rows * inputs, groups * rows // output_side
            averaged = isinstance(own.weight, AveragedGradient)
            gradient = own.weight.gradient if isinstance(own.weight, AveragedGradient) else own.weight
            moved += 2 * entries * (gradient.element_size() + (4 if averaged else 0)) + 4 * groups * inputs * size
            moved += 12 * count * output_side**2
            flops += entries * (2 * size + output_side) + 2 * count * (4 * STEPS - 2) * output_side**3
    return moved, flops


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moment_flops(op: str, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """FLOPs of the second moments among what a layer's op returned: half of every symmetric product, of patches too."""
    if not op.endswith(("second_moment", "_backward")):
        return 0
    gradients = {value.shape for value in inputs}
    moments = [r for r in results if r.dim() >= 2 and r.shape[-1] == r.shape[-2] and r.shape not in gradients]
    moments = [r for r in moments if r.dtype == torch.float32 and (r.dim() >= 3 or op.endswith("second_moment"))]
    if "conv2d" in op:
        rows = inputs[0].shape[0] * inputs[0].shape[-1] * inputs[0].shape[-2]
    else:
        rows = max(x.numel() // x.shape[-1] for x in inputs[:2])
    return sum(rows * moment.numel() for moment in moments)


def _size(kind: Any) -> int:
    return _SIZES[kind.name]


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


def _conv_moments(args: Sequence[Any]) -> tuple[int, int]:
    """The image is read once, halves of moments of the thread blocks are written and read; :func:`moment_flops` are the op's."""
    _, _, fields, blocks, *_ = args
    batch, groups, channels, height, width, _, _, kernel_height, kernel_width, *_ = fields[4:]
    moments = 4 * groups * (channels * kernel_height * kernel_width + 1) ** 2
    return 2 * batch * groups * channels * height * width + moments * (1 + max(1, blocks // groups)), 0


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


def _average_moments(args: Sequence[Any]) -> tuple[int, int]:
    """What was gathered is read, the average read and written."""
    return sum(12 * matrices * (side + 1) ** 2 for matrices, side in _inputs(args[0])), 0


def _input_metrics(args: Sequence[Any]) -> tuple[int, int]:
    """Averages are read and inverses written; an inverse takes n^3 multiplications, by half of a symmetric matrix."""
    found = _inputs(args[0])
    return sum(4 * n * ((side + 1) ** 2 + side**2) for n, side in found), sum(n * side**3 for n, side in found)


def _inputs(table: Sequence[Any]) -> list[tuple[int, int]]:
    """Blocks of each layer, and their side."""
    return [(groups * blocks, side) for (*_, side, groups, blocks, _), _ in table]


def _output_moments(args: Sequence[Any]) -> tuple[int, int]:
    """Gradients and averages are read; of the product with its own transpose one half is made."""
    moved = flops = 0
    for weight, _, (*_, groups, rows, inputs, side, input_side), _ in args[0]:
        entries = groups * rows * inputs
        moved += entries * (_size(weight[3]) + (4 if weight[1] else 0))
        moved += 4 * groups * (inputs * input_side + rows * side // 2)
        flops += entries * (2 * input_side + side)
    return moved, flops


def _output_roots(args: Sequence[Any]) -> tuple[int, int]:
    """The new moment is read, its average read and written, the root written; four half products a step, less three."""
    table, _, steps, *_ = args
    blocks = [(groups * rows // side, side) for _, _, (*_, groups, rows, _, side, _), _ in table]
    moved = sum(14 * n * side**2 for n, side in blocks)
    return moved, sum(n * (4 * steps - 3) * side**3 for n, side in blocks)


def _spd_inverses(args: Sequence[Any]) -> tuple[int, int]:
    *_, count, side, _ = args
    return 8 * count * side**2, count * side**3


def _newton_schulz_roots(args: Sequence[Any]) -> tuple[int, int]:
    _, _, count, side, _, steps, *_ = args
    return 8 * count * side**2, count * (4 * steps - 3) * side**3


_TRAFFIC: dict[str, Callable[[Sequence[Any]], tuple[int, int]]] = {
    "ema_combined": _ema_combined,
    "dot": _dot,
    "segment_sums": _segment_sums,
    "apply": _apply,
    "apply_master": _apply_master,
    "all_finite": _all_finite,
    "moment_flags": _moment_flags,
    "conv_moments": _conv_moments,
    "fused_direct": _fused_direct,
    "fused_finish": _fused_finish,
    "fused_apply": _fused_apply,
    "average_moments": _average_moments,
    "input_metrics": _input_metrics,
    "output_moments": _output_moments,
    "output_roots": _output_roots,
    "spd_inverses": _spd_inverses,
    "newton_schulz_roots": _newton_schulz_roots,
}
