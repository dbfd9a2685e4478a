"""The averages of gradients that a step starts from."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.layers.capture import statistics_dtype
from lnb.scratch import Scratch
from lnb.statistics import bias_correction
from lnb.verdict import Verdict
from lnb.work import Work
from lnb_kernels import multi_tensor

_ADAM_EPSILON = 1e-8


def average_gradients(work: Work, verdict: Verdict, config: Config, scratch: Scratch) -> dict[nn.Parameter, Tensor]:
    """Update the gradient averages; return ``g~`` per moving parameter, in the statistics' dtype.

    ``m <- b m + (1 - b) grad``; ``g~ = m / (1 - b^t)``, or with Nesterov's look-ahead ``b m / (1 - b^t) + (1 - b) grad``.
    The caller may overwrite ``g~``; what a direction will overwrite is in the memory of ``scratch``.
    """
    averages: dict[nn.Parameter, Tensor] = {}
    for device, members in by_device(work.parameters).items():
        states = [work.states[parameter] for parameter in members]
        for parameter, state in zip(members, states, strict=True):
            if "momentum" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["momentum"] = _zeros_like(parameter)
        ok = verdict.on(device)
        raw = [state["momentum"] for state in states]
        gradients = [cast(Tensor, parameter.grad) for parameter in members]
        steps = [state["step"] for state in states]
        # One tensor for each: a lone one may be read by the host.
        torch._foreach_add_(steps, 1.0 if ok is None else [ok.float()] * len(steps))
        corrections = bias_correction(config.momentum, torch.stack(steps))
        shares = (config.momentum if config.nesterov else 1.0) / corrections
        take = 1 - config.momentum if config.nesterov else 0.0
        out = _memory(work, members, raw, scratch) if device.type == "cpu" else None
        corrected = multi_tensor.ema_combined_(raw, gradients, config.momentum, shares, take, ok, out)
        averages.update(zip(members, corrected, strict=True))
    return averages


def _memory(work: Work, members: list[nn.Parameter], averages: list[Tensor], scratch: Scratch) -> list[Tensor] | None:
    """Where ``g~`` of ``members`` goes; None where none of it is overwritten by its direction."""
    overwritten = {p for block in work.blocks if block.config.overwrites_average for p in block.parameters}
    kept = scratch.take({p: average for p, average in zip(members, averages, strict=True) if p in overwritten})
    if not kept:
        return None
    return [kept[p] if p in kept else torch.empty_like(average) for p, average in zip(members, averages, strict=True)]


def adam_directions(work: Work, averages: dict[nn.Parameter, Tensor], verdict: Verdict, decay: float) -> list[Tensor]:
    """Adam's direction ``g~ / (sqrt(v / (1 - b^t)) + eps)`` of every other parameter, updating ``v``, the mean square.

    Entries beyond what can be squared count as the largest that can: an infinite mean square would never end.
    """
    directions: dict[nn.Parameter, Tensor] = {}
    for device, members in by_device(work.others).items():
        states = [work.states[parameter] for parameter in members]
        for parameter, state in zip(members, states, strict=True):
            if "gradient_square" not in state:
                state["gradient_square"] = _zeros_like(parameter)
        raw = [state["gradient_square"] for state in states]
        squares = [_squarable(cast(Tensor, p.grad).to(v.dtype)).square_() for p, v in zip(members, raw, strict=True)]
        multi_tensor.ema_(raw, squares, decay, verdict.on(device))
        corrections = bias_correction(decay, torch.stack([state["step"] for state in states]).clamp(min=1)).unbind()
        for parameter, v, correction in zip(members, raw, corrections, strict=True):
            size = (v / correction.to(v.dtype)).sqrt_().add_(_ADAM_EPSILON)
            directions[parameter] = _squarable(averages[parameter]).div_(size)
    return [directions[parameter] for parameter in work.others]


def _squarable(values: Tensor) -> Tensor:
    """A copy of ``values`` whose squares are finite."""
    most = math.sqrt(torch.finfo(values.dtype).max) / 2
    return values.clamp(-most, most)


def by_device(parameters: list[nn.Parameter]) -> dict[torch.device, list[nn.Parameter]]:
    """The parameters of every device, in their order."""
    found: dict[torch.device, list[nn.Parameter]] = {}
    for parameter in parameters:
        found.setdefault(parameter.device, []).append(parameter)
    return found


def _zeros_like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(
        parameter, dtype=statistics_dtype(parameter.dtype), memory_format=torch.contiguous_format, requires_grad=False
    )
