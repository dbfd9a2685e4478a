"""The two ops by the CUDA kernels: a launch each for up to 256 layers, however many tiles these have.

The host reads nothing back and copies nothing to the device, so every call can be captured in a CUDA graph. Layers that a
kernel does not take go elsewhere, in the same call and first, since that needs memory and may fail
(:mod:`lnb_kernels.fused_step.left_over`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _cuda
from lnb_kernels._writes import require_aligned
from lnb_kernels.fused_step import reference
from lnb_kernels.fused_step.beside import direct_by_triton_
from lnb_kernels.fused_step.layers import DirectLayer, FinishLayer, is_finished, is_served, offsets
from lnb_kernels.fused_step.left_over import direct_left_over_
from lnb_kernels.multi_tensor.grouping import native_type
from lnb_kernels.step_tables import StepSettings


def direct_layers_(
    layers: Sequence[DirectLayer],
    partials: Tensor,
    mixed_biases: Tensor,
    shares: Tensor,
    bias_shares: Tensor | None,
    decay: float,
    take: float,
    ok: Tensor | None,
    precision: str,
) -> None:
    """As :func:`lnb_kernels.fused_step.direct_layers_`."""
    native = _cuda.module(partials.device)
    places = offsets([layer.rows for layer in layers], [layer.column_blocks for layer in layers])
    served = list(map(is_served, layers))
    fields = [
        _direct_fields(layer, place, i)
        for i, (layer, place, mine) in enumerate(zip(layers, places, served, strict=True))
        if mine
    ]
    numbers = [tensor.resolve_neg() for tensor in (shares, *([] if bias_shares is None else [bias_shares]))]
    if not all(served):
        _require_memory(layers, served)
        of_biases = None if bias_shares is None else numbers[1]
        arguments = partials, mixed_biases, numbers[0], of_biases, decay, take, ok
        direct_left_over_(layers, direct_by_triton_(layers, served, *arguments, precision), *arguments)
    if not fields:
        return
    first = layers[served.index(True)]
    addresses = [tensor.data_ptr() for tensor in numbers]
    native.fused_direct(
        fields, native_type(native, first.gradient.dtype), native_type(native, first.direction.dtype),
        getattr(native.Precision, precision.upper()), partials.data_ptr(), partials.numel(), mixed_biases.data_ptr(),
        mixed_biases.numel(), (*addresses, 0)[:2], len(layers), decay, take, _address(ok), _cuda.where(partials),
    )  # fmt: skip


def _direct_fields(layer: DirectLayer, place: tuple[int, int], slot: int) -> tuple[int, ...]:
    """As the native module takes a layer."""
    read = (layer.bias_gradient, layer.bias_momentum, layer.inverse, layer.mean, layer.root)
    matrices, (rows, inputs) = layer.gradient.shape[:-2].numel(), layer.gradient.shape[-2:]
    return (
        layer.gradient.data_ptr(), layer.momentum.data_ptr(), layer.direction.data_ptr(), *map(_address, read), *place,
        matrices, rows, inputs, layer.inverse.shape[-1], layer.root.shape[-1], slot,
    )  # fmt: skip


def _require_memory(layers: Sequence[DirectLayer], served: Sequence[bool]) -> None:
    """Refuse what the kernel would, before the reference writes to other layers."""
    for i, (layer, mine) in enumerate(zip(layers, served, strict=True)):
        for name, tensor in vars(layer).items() if mine else ():
            if tensor is not None:
                require_aligned(f"layer {i}: {name}", tensor.data_ptr(), tensor.numel(), tensor.element_size())


def finish_layers_(
    layers: Sequence[FinishLayer],
    numbers: reference.Numbers,
    partials: Tensor,
    mixed_biases: Tensor,
    steps: Tensor,
    norms: Tensor | None,
    bias_shares: Tensor | None,
    settings: StepSettings,
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.fused_step.finish_layers_`; all layers by the reference where one has strided or wide biases."""
    read = (partials, mixed_biases, steps)
    if not all(map(is_finished, layers)) or any(map(Tensor.is_neg, (*vars(numbers).values(), *read))):
        reference.finish_layers_(layers, numbers, partials, mixed_biases, steps, norms, bias_shares, settings, ok)
        return
    native = _cuda.module(partials.device)
    places = offsets([layer.rows for layer in layers], [layer.column_blocks for layer in layers])
    gradients = {layer.bias_gradient.dtype for layer in layers if layer.bias_gradient is not None}
    optional = [None if tensor is None else tensor.resolve_neg() for tensor in (bias_shares, norms)]
    addresses = [tensor.data_ptr() for tensor in (*vars(numbers).values(), *read)]
    native.fused_finish(
        [_finish_fields(native, layer, *place) for layer, place in zip(layers, enumerate(places), strict=True)],
        native_type(native, gradients.pop() if gradients else torch.float32), (*addresses, *map(_address, optional)),
        partials.numel(), mixed_biases.numel(), len(layers), steps.numel(), list(map(float, vars(settings).values()))[:17],
        _address(ok), _cuda.where(partials),
    )  # fmt: skip


def _finish_fields(native: Any, layer: FinishLayer, slot: int, place: tuple[int, int]) -> tuple[Any, ...]:
    """As the native module takes a layer. A rate on the device is read there."""
    biases = (layer.bias_momentum, layer.bias_direction, layer.bias_gradient)
    fields = (*map(_address, biases), *place, layer.rows, layer.column_blocks, slot, layer.step)
    rate = (
        (0.0, layer.rate.data_ptr(), native_type(native, layer.rate.dtype))
        if isinstance(layer.rate, Tensor)
        else (layer.rate, 0, native.Type.FLOAT64)
    )
    return fields, layer.usual_norm, rate


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
