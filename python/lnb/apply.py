"""The write of a step: ``theta <- theta - lr (scale h + weight_decay theta)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lnb.arenas import constant
from lnb.config import Config
from lnb.master import has_master, masters_of, remember
from lnb.verdict import Verdict
from lnb.work import Work
from lnb_kernels import multi_tensor


def apply(
    work: Work,
    directions: list[Tensor],
    scales: Tensor,
    shorter: dict[nn.Parameter, Tensor],
    verdict: Verdict,
    config: Config,
) -> None:
    """Move the parameters of one device, one call per parameter group and use of masters.

    Args:
        work: what moves.
        directions: of every parameter.
        scales: of every layer and every other parameter, ``[layers + others]``.
        shorter: factors ``[]`` by which parameters are multiplied first, in a copy: one at a time, so that one is in memory.
        verdict: whether anything may change.
        config: the optimizer's settings.
    """
    ok = verdict.on(scales.device)
    each = scales
    if any(len(block.parameters) > 1 for block in work.blocks):
        each = scales[constant(work.owners, scales.device)]
    batches: dict[tuple[int, bool], list[int]] = {}
    for i, parameter in enumerate(work.parameters):
        group, with_master = work.groups[parameter], has_master(parameter, config)
        if parameter in shorter:
            rates = each[i : i + 1].to(directions[i].dtype), group["lr"], group["weight_decay"], ok
            apply_shorter(parameter, directions[i], shorter[parameter], rates, work.states if with_master else None)
        else:
            batches.setdefault((id(group), with_master), []).append(i)
    for (_, with_master), places in batches.items():
        parameters = [work.parameters[i] for i in places]
        steps = [directions[i] for i in places]
        group = work.groups[parameters[0]]
        chosen = each if len(places) == len(each) else each[constant(tuple(places), each.device)]
        rates = chosen.to(steps[0].dtype), group["lr"], group["weight_decay"], ok
        if with_master:
            multi_tensor.apply_master_(masters_of(parameters, work.states), parameters, steps, *rates)
            remember(parameters)
        else:
            multi_tensor.apply_(parameters, steps, *rates)


def apply_shorter(
    parameter: nn.Parameter,
    step: Tensor,
    factor: Tensor,
    rates: tuple[Tensor, float | Tensor, float, Tensor | None],
    states: Any,
) -> None:
    """The same of one parameter, multiplied by ``factor`` first; ``states`` where it has a master, else None."""
    factor = factor if parameter.dtype == torch.float64 else factor.float()
    moved = parameter.detach()
    if states is None:
        moved = (moved * factor).to(moved.dtype)
        multi_tensor.apply_([moved], [step], *rates)
    else:
        (master,) = masters_of([parameter], states)
        moved, moved_master = moved.clone(), master * factor
        multi_tensor.apply_master_([moved_master], [moved], [step], *rates)
        master.copy_(moved_master)
    parameter.copy_(moved)
    if states is not None:
        remember([parameter])
