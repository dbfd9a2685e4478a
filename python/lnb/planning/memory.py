"""Bytes that a layer's state takes, and the inputs it keeps from the backward pass to the step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import gathered_moments, moment_blocks
from lnb.layers.capture import Samples, statistics_dtype
from lnb.layers.claimed import Layer
from lnb.state.schema import planned_bytes
from lnb_kernels import fused_step


def state_bytes(layer: Layer, config: Config) -> int:
    """State of a layer whose weight and bias both move, gradient averages included."""
    return sum(planned_bytes(p, layer, config, weight=p is layer.weight) for p in layer.parameters)


def moment_bytes(layer: Layer, config: Config) -> int:
    """The second moment that a backward pass leaves on steps that gather one (self-attention: one for all three)."""
    if config.keeps_inputs and not layer.packed:
        return 0
    size = layer.d_in // moment_blocks(layer, config)
    return statistics_dtype(layer.weight.dtype).itemsize * gathered_moments(layer, config) * (size + 1) ** 2


def scratch_bytes(layer: Layer, config: Config) -> int:
    """Memory that is kept for directions, and for the averages that they overwrite (:mod:`lnb.scratch`)."""
    if not config.overwrites_average:
        return 0
    if layer.weight.device.type != "cpu":
        fused = fused_step.available(layer.weight.device) and layer.weight.dtype != torch.float64
        return layer.weight.numel() * config.direction_dtype.itemsize if fused else 0
    return sum(p.numel() * statistics_dtype(p.dtype).itemsize for p in layer.parameters)


def input_bytes(layer: Layer, config: Config, samples: Samples) -> int:
    """Inputs that are kept until the step, for solvers that use them."""
    if not config.keeps_inputs or layer.packed:
        return 0
    groups, _, d_in = layer.shape
    return samples.count * layer.stride_area * groups * d_in // layer.taps * layer.weight.dtype.itemsize


def other_bytes(parameter: Tensor, config: Config) -> int:
    """State of a parameter of no layer; 0 while its shape is not known."""
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return 0
    return planned_bytes(parameter, None, config)
