"""The refresh by the CUDA kernels: tables of addresses in, four launches for all layers, whatever their sizes.

The mathematics is that of :func:`lnb.statistics.factored.factorize`, :func:`lnb.trust_regions.two_sided.output_moment` and
:func:`lnb.statistics.orthogonalize.inverse_root`, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _cuda
from lnb_kernels.multi_tensor.grouping import native_type
from lnb_kernels.refresh.layers import AveragedGradient, InputMetric, OutputMetric

_GRADIENTS = (torch.float32, torch.bfloat16, torch.float16)


def serves(device: torch.device) -> bool:
    """Whether the kernels run on ``device``, and may: under ``set_backend("auto")`` or ``"native"``, and not traced."""
    return not torch.compiler.is_compiling() and _cuda.serves(device, "spd_inverse")


def largest_side(tensor: Tensor) -> int:
    """Of the diagonal blocks that the kernels take on its device: 144, less where there is little shared memory."""
    return _cuda.largest_side(tensor)


def takes(gradient: Tensor | AveragedGradient) -> bool:
    """Whether the kernels read a gradient of its dtype."""
    if isinstance(gradient, AveragedGradient):
        return gradient.average.dtype == torch.float32 and gradient.gradient.dtype in _GRADIENTS
    return gradient.dtype in _GRADIENTS


def refresh_metrics(
    layers: Sequence[InputMetric], ok: Tensor | None, noise: float, coefficients: Sequence[float], steps: int
) -> None:
    """Average the second moments, and write ``C^-1``, the means and ``P^(-1/2)``, of layers that had rows.

    A layer changes nothing where its ``gathered`` counts no row, is not ``squarable``, or ``ok`` does not hold: what
    it keeps, it keeps. A block that has no inverse in float32 gets a ridge that is larger by its mean diagonal, and if that
    does not help, the inverse of its diagonal; a moment without a root gets a multiple of the identity.

    Args:
        layers: all on one device, with blocks of at most :func:`largest_side` entries.
        ok: ``[]``, bool, whether anything may change; None for yes.
        noise: the variance, in units of the mean square, below which inputs do not vary: their ridge is then relative
            to the mean square.
        coefficients: ``(a, b, c)`` of the Newton-Schulz steps for the root.
        steps: their number, at least 1.

    Raises:
        ValueError: sizes do not fit; nothing was written.
        RuntimeError: CUDA refused a launch; the message names it.
    """
    if not layers:
        return
    device = layers[0].gathered.device
    native, where = _cuda.module(device), _cuda.where(layers[0].gathered)
    held: list[Tensor] = []  # alive until the launches are queued
    inputs = _input_table(layers, held)
    entries = sum(layer.inverse.shape[0] * layer.inverse.shape[1] for layer in layers)
    sums = torch.empty((entries, 2), dtype=torch.float64, device=device)
    facts = torch.empty((len(layers), native.FACTS), dtype=torch.float32, device=device)
    outputs = _output_table(native, layers, held)
    native.average_moments(inputs, _address(ok), sums.data_ptr(), facts.data_ptr(), where)
    native.input_metrics(inputs, noise, sums.data_ptr(), facts.data_ptr(), where)
    if outputs:
        native.output_moments(outputs, facts.data_ptr(), len(layers), where)
        native.output_roots(outputs, tuple(coefficients), steps, facts.data_ptr(), len(layers), where)


def _input_table(layers: Sequence[InputMetric], held: list[Tensor]) -> Sequence[tuple[Sequence[int], Sequence[float]]]:
    averages = _averages(layers)
    table = []
    for layer, average in zip(layers, averages, strict=True):
        gathered = layer.gathered
        groups, blocks, ones, _ = gathered.shape
        if gathered.stride()[1:] != (ones * ones, ones, 1):
            gathered = gathered.contiguous()
        held += [gathered, average]
        integers = (
            gathered.data_ptr(), _address(layer.squarable), average.data_ptr(), _address(layer.steps),
            layer.inverse.data_ptr(), _address(layer.mean), gathered.stride(0) if groups > 1 else 0,
            ones - 1, groups, blocks, int(layer.relative),
        )  # fmt: skip
        table.append((integers, (layer.decay, layer.ridge, layer.sample_ridge, float(layer.sample_every))))
    return table


def _averages(layers: Sequence[InputMetric]) -> list[Tensor]:
    """Where averages go: those that are kept, and memory for this step's of the other layers."""
    sizes = [0 if layer.average is not None else layer.gathered.numel() for layer in layers]
    fresh = torch.empty(sum(sizes), dtype=torch.float32, device=layers[0].gathered.device).split(sizes)
    return [own if layer.average is None else layer.average for layer, own in zip(layers, fresh, strict=True)]


def _output_table(native: Any, layers: Sequence[InputMetric], held: list[Tensor]) -> list[tuple[Any, ...]]:
    members = [(i, layer, outputs) for i, layer in enumerate(layers) for outputs in layer.outputs]
    shapes = [_shape(layer, outputs) for _, layer, outputs in members]
    sizes = [native.partial_sizes(*shape) for shape in shapes]
    device = layers[0].gathered.device
    parts = torch.empty((sum(count for count, _ in sizes), 2), dtype=torch.float64, device=device)
    partials = torch.empty(sum(floats for _, floats in sizes), dtype=torch.float32, device=device)
    held += [parts, partials]
    of_parts, of_partials = parts.data_ptr(), partials.data_ptr()
    table = []
    for (i, layer, outputs), shape, (count, floats) in zip(members, shapes, sizes, strict=True):
        weight = _gradient(native, outputs.weight, held)
        bias = (0, 0, 0, weight[3], weight[4]) if outputs.bias is None else _gradient(native, outputs.bias, held)
        integers = (
            of_partials, of_parts, layer.inverse.data_ptr(), _address(layer.mean), _address(outputs.average),
            outputs.root.data_ptr(), i, *shape,
        )  # fmt: skip
        momentum, take = _shares(outputs.weight)
        table.append((weight, bias, integers, (momentum, take, layer.decay)))
        of_parts += 16 * count
        of_partials += 4 * floats
    return table


def _shape(layer: InputMetric, outputs: OutputMetric) -> tuple[int, int, int, int, int]:
    """Groups, rows and inputs of the weight, and the sides of its blocks of neurons and of inputs."""
    groups, blocks, side, _ = outputs.root.shape
    input_blocks, input_side = layer.inverse.shape[1:3]
    return groups, blocks * side, input_blocks * input_side, side, input_side


def _gradient(native: Any, gradient: Tensor | AveragedGradient, held: list[Tensor]) -> tuple[int, int, int, Any, Any]:
    """Addresses of a gradient, its average and its share, and the types of the first and the last."""
    if isinstance(gradient, Tensor):
        value = gradient.resolve_neg().contiguous()
        held.append(value)
        return value.data_ptr(), 0, 0, native_type(native, value.dtype), native.Type.FLOAT64
    value, average = gradient.gradient.resolve_neg().contiguous(), gradient.average.contiguous()
    held += [value, average]
    types = native_type(native, value.dtype), native_type(native, gradient.share.dtype)
    return value.data_ptr(), average.data_ptr(), gradient.share.data_ptr(), *types


def _shares(gradient: Tensor | AveragedGradient) -> tuple[float, float]:
    return (0.0, 0.0) if isinstance(gradient, Tensor) else (gradient.momentum, gradient.take)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
