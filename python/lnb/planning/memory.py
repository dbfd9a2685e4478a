"""Bytes that a layer's state takes, and the inputs it keeps from the backward pass to the step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lnb.blocks import Block
from lnb.config import Config
from lnb.factored import block_count
from lnb.layers.capture import Rows, statistics_dtype
from lnb.master import has_master
from lnb.work import gathered_moments, moment_blocks
from lnb_kernels import fused_step
from lnb_kernels.scaling import sum_dtype

_SCALAR = 4  # step counters are float32


def state_bytes(block: Block, config: Config) -> int:
    """State of a layer whose weight and bias both move, gradient averages included."""
    groups, rows, d_in = block.shape
    columns = d_in + (block.bias is not None)
    numbers = groups * rows * columns
    scalars = len(block.parameters)
    count = moment_blocks(block, config)
    if config.factored:
        numbers += groups * d_in * (d_in // count) + groups * (columns - d_in) * d_in
        if config.region.two_sided:
            side = rows // block_count(rows, config.block_size)
            numbers += groups * rows * side * (2 if config.b_s > 0 else 1)
    if config.keeps_second_moment:
        numbers += groups * count * (d_in // count + 1) ** 2
        scalars += 1
    if config.keeps_direction:
        numbers += groups * rows * columns
    if config.keeps_feature_moments:
        numbers += 2 * groups * d_in
        scalars += 1
    wide = 0
    if config.damping == "agreement":
        wide += groups * rows + 2  # row_square, independent_square, radius
    elif config.damping == "gain":
        wide += 2  # fraction, last_slope
        numbers += groups * rows * columns  # last_step
    if config.max_relative_change is not None:
        wide += 2  # weight_norm, growth
    others = _SCALAR * scalars + sum_dtype(block.weight.device).itemsize * wide
    masters = sum(_master_bytes(parameter, config) for parameter in block.parameters)
    return statistics_dtype(block.weight.dtype).itemsize * numbers + others + masters


def moment_bytes(block: Block, config: Config) -> int:
    """The second moment that a backward pass leaves on steps that gather one (self-attention: one for all three)."""
    if config.keeps_inputs and not block.packed:
        return 0
    size = block.d_in // moment_blocks(block, config)
    return statistics_dtype(block.weight.dtype).itemsize * gathered_moments(block, config) * (size + 1) ** 2


def scratch_bytes(block: Block, config: Config) -> int:
    """Memory that is kept for directions, and for the averages that they overwrite (:mod:`lnb.scratch`)."""
    if not config.overwrites_average:
        return 0
    if block.weight.device.type != "cpu":
        fused = fused_step.available(block.weight.device) and block.weight.dtype != torch.float64
        return block.weight.numel() * config.direction_dtype.itemsize if fused else 0
    return sum(p.numel() * statistics_dtype(p.dtype).itemsize for p in block.parameters)


def input_bytes(block: Block, config: Config, rows: Rows) -> int:
    """Inputs that are kept until the step, for solvers that use them."""
    if not config.keeps_inputs or block.packed:
        return 0
    groups, _, d_in = block.shape
    return rows.count * block.stride_area * groups * d_in // block.taps * block.weight.dtype.itemsize


def other_bytes(parameter: Tensor, config: Config) -> int:
    """State of a parameter of no layer; 0 while its shape is not known."""
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return 0
    averages = 2 if config.others == "adamw" else 1
    own = averages * parameter.numel() * statistics_dtype(parameter.dtype).itemsize + _SCALAR
    return own + _master_bytes(parameter, config)


def _master_bytes(parameter: Tensor, config: Config) -> int:
    return torch.float32.itemsize * parameter.numel() if has_master(parameter, config) else 0
