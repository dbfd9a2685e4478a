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
from lnb_kernels.fused_step.layers import (
    DirectArguments,
    DirectLayer,
    FinishArguments,
    FinishLayer,
    Place,
    is_served,
    places_of,
)
from lnb_kernels.fused_step.left_over import direct_left_over_
from lnb_kernels.multi_tensor.grouping import native_type


def direct_layers_(layers: Sequence[DirectLayer], given: DirectArguments) -> None:
    """As :func:`lnb_kernels.fused_step.direct_layers_`."""
    native = _cuda.module(given.partials.device)
    served = list(map(is_served, layers))
    fields = [
        _direct_fields(layer, place)
        for layer, place, mine in zip(layers, places_of(layers), served, strict=True) if mine
    ]  # fmt: skip
    given = given.resolved()
    if not all(served):
        _require_memory(layers, served)
        direct_left_over_(layers, direct_by_triton_(layers, served, given), given)
    if not fields:
        return
    first, partials, mixed_biases = layers[served.index(True)], given.partials, given.mixed_biases
    native.fused_direct(
        fields, native_type(native, first.gradient.dtype), native_type(native, first.direction.dtype),
        getattr(native.Precision, given.precision.upper()), partials.data_ptr(), partials.numel(), mixed_biases.data_ptr(),
        mixed_biases.numel(), (given.shares.data_ptr(), _address(given.bias_shares)), len(layers), given.decay, given.take,
        _address(given.ok), _cuda.where(partials),
    )  # fmt: skip


def _direct_fields(layer: DirectLayer, place: Place) -> tuple[int, ...]:
    """As the native module takes a layer."""
    read = (layer.bias_gradient, layer.bias_momentum, layer.inverse, layer.mean, layer.root)
    matrices, (rows, inputs) = layer.gradient.shape[:-2].numel(), layer.gradient.shape[-2:]
    return (
        layer.gradient.data_ptr(), layer.momentum.data_ptr(), layer.direction.data_ptr(), *map(_address, read), place.row,
        place.entry, matrices, rows, inputs, layer.inverse.shape[-1], layer.root.shape[-1], place.slot,
    )  # fmt: skip


def _require_memory(layers: Sequence[DirectLayer], served: Sequence[bool]) -> None:
    """Refuse what the kernel would, before the reference writes to other layers."""
    for i, (layer, mine) in enumerate(zip(layers, served, strict=True)):
        for name, tensor in vars(layer).items() if mine else ():
            if tensor is not None:
                require_aligned(f"layer {i}: {name}", tensor.data_ptr(), tensor.numel(), tensor.element_size())


def finish_layers_(layers: Sequence[FinishLayer], given: FinishArguments) -> None:
    """As :func:`lnb_kernels.fused_step.finish_layers_`; all layers by the reference where one has strided or wide biases."""
    if not given.are_served(layers):
        reference.finish_layers_(layers, given)
        return
    native = _cuda.module(given.partials.device)
    given = given.resolved()
    gradients = {layer.bias_gradient.dtype for layer in layers if layer.bias_gradient is not None}
    tensors = (
        *vars(given.numbers).values(),
        given.partials,
        given.mixed_biases,
        given.input_size,
        given.steps,
        given.bias_shares,
        given.norms,
    )
    native.fused_finish(
        [_finish_fields(native, layer, place) for layer, place in zip(layers, places_of(layers), strict=True)],
        native_type(native, gradients.pop() if gradients else torch.float32), tuple(map(_address, tensors)),
        given.partials.numel(), given.mixed_biases.numel(), len(layers), given.steps.numel(),
        given.settings.numbers()[:19], _address(given.ok), _cuda.where(given.partials),
    )  # fmt: skip


def _finish_fields(native: Any, layer: FinishLayer, place: Place) -> tuple[Any, ...]:
    """As the native module takes a layer. A rate on the device is read there."""
    biases = (layer.bias_momentum, layer.bias_direction, layer.bias_gradient)
    fields = (*map(_address, biases), place.row, place.entry, layer.rows, layer.column_blocks, place.slot, layer.step)
    rate = (
        (0.0, layer.rate.data_ptr(), native_type(native, layer.rate.dtype))
        if isinstance(layer.rate, Tensor)
        else (layer.rate, 0, native.Type.FLOAT64)
    )
    return fields, layer.usual_norm, rate


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
