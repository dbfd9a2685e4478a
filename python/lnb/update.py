"""One step of LNB: collect, check, average, solve, normalise, apply. Data flows one way.

Notation: ``g~`` the averaged gradient, ``h`` the direction (``metric h = g~``), ``z`` the step's norm,
``theta <- theta - lr (h / z + weight_decay theta)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lnb.blocks import Block
from lnb.capture import statistics_dtype
from lnb.config import Config
from lnb.metric import solve_block
from lnb.statistics import bias_correction
from lnb.verdict import Verdict
from lnb_kernels import multi_tensor


@dataclass(eq=False)
class BlockWork:
    """One layer's share of a step."""

    block: Block
    parameters: list[nn.Parameter]  # the weight, and the bias where it moves with it
    state: dict[str, Any]  # the weight's state
    ridge: float
    moments: Tensor | None  # [groups, D+1, D+1] of this step
    channels: Tensor | None  # [3, C] of this step
    inputs: list[Tensor]

    @property
    def with_bias(self) -> bool:
        """Whether the bias is a column of this step's matrices."""
        return len(self.parameters) == 2


@dataclass(eq=False)
class Work:
    """Everything that one step reads and changes."""

    blocks: list[BlockWork] = field(default_factory=list)
    others: list[nn.Parameter] = field(default_factory=list)
    groups: dict[nn.Parameter, dict[str, Any]] = field(default_factory=dict)
    states: Any = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that moves: those of the blocks, then the others."""
        return [parameter for work in self.blocks for parameter in work.parameters] + self.others


def collect(blocks: Iterable[Block], param_groups: list[dict[str, Any]], states: Any) -> Work:
    """Find what has a gradient, and read what the captures hold. Nothing is changed.

    Raises:
        RuntimeError: a claimed layer has a gradient, but no backward pass went through its forward.
        TypeError: a gradient is sparse or complex.
    """
    groups = {parameter: group for group in param_groups for parameter in group["params"]}
    moving = {parameter: None for parameter in groups if parameter.grad is not None}
    for parameter in moving:
        if parameter.grad is not None and (parameter.grad.is_sparse or parameter.grad.is_complex()):
            raise TypeError(
                f"a gradient of shape {tuple(parameter.shape)} is sparse or complex; LNB needs dense, real ones"
            )
    work = Work(groups=groups, states=states)
    for block in blocks:
        if block.weight not in moving:
            continue
        parameters = [parameter for parameter in block.parameters if parameter in moving]
        found = _read_captures(block)
        work.blocks.append(BlockWork(block, parameters, states[block.weight], groups[block.weight]["ridge"], *found))
        for parameter in parameters:
            del moving[parameter]
    work.others = list(moving)
    return work


def _read_captures(block: Block) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """What every layer of ``block`` captured, added up."""
    moments: Tensor | None = None
    channels: Tensor | None = None
    inputs: list[Tensor] = []
    for capture in block.captures:
        if capture.moments is not None:
            more = capture.moments.reshape(block.groups, *capture.moments.shape[-2:])
            moments = more if moments is None else moments + more
        if capture.channel_moments is not None:
            channels = capture.channel_moments if channels is None else channels + capture.channel_moments
        inputs += capture.inputs
    if moments is None and not inputs:
        raise RuntimeError(
            f"step(): layer {block.name!r} has a gradient, but its input was not seen since the last step. Call the layer "
            f"itself in the forward pass (not F.linear or F.conv2d on its weight), call backward() before step(), and reset "
            f"gradients with zero_grad() to None; or pass exclude=[that layer] to LNB. Nothing was changed"
        )
    return moments, channels, inputs


def check_finite(work: Work, wait: bool) -> Verdict:
    """Whether every gradient and second moment of the step is finite.

    NaN or inf in an input always reaches the layer's gradient or the sums and squares in its second moment, whose other
    entries are bounded by those (Cauchy-Schwarz): gradients, last rows and diagonals are all that must be read.
    """
    read: list[Tensor] = [parameter.grad for parameter in work.parameters if parameter.grad is not None]
    for block in work.blocks:
        if block.moments is not None:
            read += [block.moments[:, -1], block.moments.diagonal(dim1=-2, dim2=-1).contiguous()]
        if block.channels is not None:
            read.append(block.channels)
    device = read[0].device
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in read:
        by_device.setdefault(tensor.device, []).append(tensor)
    ok = torch.stack([multi_tensor.all_finite(tensors).to(device) for tensors in by_device.values()]).all()
    return Verdict(ok, wait)


def run(work: Work, verdict: Verdict, config: Config) -> Verdict:
    """Make the step, as far as ``verdict`` allows; return the verdict narrowed by the directions being finite."""
    averages = average_gradients(work, verdict, config.momentum)
    directions: list[Tensor] = []  # one per parameter, in the order of work.parameters
    products: list[Tensor] = []  # <h, g~>, one per block or other parameter
    for block_work in work.blocks:
        gradient = block_work.block.join([averages[p] for p in block_work.parameters])
        solution = solve_block(block_work, gradient, verdict, config)
        directions += block_work.block.split(solution)
        products.append((solution * gradient).sum())
    for parameter in work.others:
        directions.append(averages[parameter])
        products.append(averages[parameter].square().sum())
    scale, verdict = _step_scale(products, verdict, config.min_norm)
    if not verdict.rejected:
        _apply(work, directions, scale, verdict)
    return verdict


def average_gradients(work: Work, verdict: Verdict, momentum: float) -> dict[nn.Parameter, Tensor]:
    """Update the gradient averages; return them bias-corrected, one per moving parameter."""
    parameters = work.parameters
    for parameter in parameters:
        state = work.states[parameter]
        if "momentum" not in state:
            dtype = statistics_dtype(parameter.dtype)
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["momentum"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
    averages = {}
    by_device: dict[torch.device, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_device.setdefault(parameter.device, []).append(parameter)
    for device, members in by_device.items():
        ok = verdict.on(device)
        steps = [work.states[parameter]["step"] for parameter in members]
        raw = [work.states[parameter]["momentum"] for parameter in members]
        torch._foreach_add_(steps, 1.0 if ok is None else ok.float())
        multi_tensor.ema_(raw, [parameter.grad for parameter in members], momentum, ok)
        corrections = bias_correction(momentum, torch.stack(steps)).unbind()
        averages.update({p: m / c.to(m.dtype) for p, m, c in zip(members, raw, corrections, strict=True)})
    return averages


def _step_scale(products: list[Tensor], verdict: Verdict, min_norm: float) -> tuple[Tensor, Verdict]:
    """``1 / z`` with ``z = max(min_norm, sqrt(max(0, sum <h, g~>)))``, and the verdict that also requires it finite.

    A direction with NaN or inf makes its product with ``g~`` NaN or inf: no other check of the directions is needed.
    """
    device = products[0].device
    total = torch.stack([product.to(device, torch.float64) for product in products]).sum()
    norm = total.clamp(min=0).sqrt().clamp(min=min_norm)
    return norm.reciprocal(), verdict.narrow(total.isfinite())


def _apply(work: Work, directions: list[Tensor], scale: Tensor, verdict: Verdict) -> None:
    """``theta <- theta - lr (scale h + weight_decay theta)``, one call per parameter group and device."""
    batches: dict[tuple[int, torch.device], list[tuple[nn.Parameter, Tensor]]] = {}
    for parameter, direction in zip(work.parameters, directions, strict=True):
        key = id(work.groups[parameter]), parameter.device
        batches.setdefault(key, []).append((parameter, direction))
    for (_, device), pairs in batches.items():
        group = work.groups[pairs[0][0]]
        parameters, steps = map(list, zip(*pairs, strict=True))
        scales = scale.to(device, steps[0].dtype).expand(len(steps))
        multi_tensor.apply_(parameters, steps, scales, group["lr"], group["weight_decay"], verdict.on(device))
