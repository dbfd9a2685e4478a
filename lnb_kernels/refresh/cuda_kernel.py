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
from lnb_kernels.refresh.layers import AveragedGradient, InputMetric, averages_of, shape_of


def refresh_metrics(
    layers: Sequence[InputMetric], ok: Tensor | None, noise: float, coefficients: Sequence[float], steps: int
) -> None:
    """As :meth:`lnb_kernels.refresh.Refresher.refresh`."""
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
    averages = averages_of(layers)
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
        every = float(layer.sample_every)
        table.append((integers, (layer.decay, layer.ridge, layer.sample_ridge, layer.data_inputs, every)))
    return table


def _output_table(native: Any, layers: Sequence[InputMetric], held: list[Tensor]) -> list[tuple[Any, ...]]:
    members = [(i, layer, outputs) for i, layer in enumerate(layers) for outputs in layer.outputs]
    shapes = [shape_of(layer, outputs) for _, layer, outputs in members]
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
            outputs.root.data_ptr(), _address(outputs.input_size), i, *shape,
        )  # fmt: skip
        momentum, take = _shares(outputs.weight)
        table.append((weight, bias, integers, (momentum, take, layer.decay, layer.output_ridge)))
        of_parts += 16 * count
        of_partials += 4 * floats
    return table


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
