"""The write of a step: ``theta <- theta - lr (scale h + weight_decay theta)``."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import StepContext, rate_like
from lnb.master import has_master, masters_of, remember
from lnb.statistics.arenas import constant
from lnb.verdict import Verdict
from lnb_kernels import multi_tensor

Number = TypeVar("Number", float, Tensor)


def apply(
    context: StepContext,
    directions: list[Tensor],
    scales: Tensor,
    shorter: dict[nn.Parameter, Tensor],
    verdict: Verdict,
    config: Config,
) -> None:
    """Move the parameters of one device.

    Parameters of a group share a call if all of them have masters or none has; each that is shortened has a call of its own.

    Args:
        context: the layers and other parameters to move.
        directions: of every parameter.
        scales: of every layer and every other parameter, ``[layers + others]``.
        shorter: factors ``[]`` by which some parameters are also multiplied.
        verdict: whether anything may change.
        config: the optimizer's settings.
    """
    ok = verdict.on(scales.device)
    each = scales
    if any(len(layer.parameters) > 1 for layer in context.layers):
        each = scales[constant(context.owners, scales.device)]
    batches: dict[tuple[int, bool, int], list[int]] = {}
    for i, parameter in enumerate(context.parameters):
        alone = i if parameter in shorter else -1
        key = id(context.groups[parameter]), has_master(parameter, config), alone
        batches.setdefault(key, []).append(i)
    typed = {dtype: each.to(dtype) for dtype in {direction.dtype for direction in directions}}
    joined = _joined_decays(context, shorter)
    for (_, with_master, _), places in batches.items():
        parameters = [context.parameters[i] for i in places]
        steps = [directions[i] for i in places]
        group = context.groups[parameters[0]]
        decay = joined.get(parameters[0], group["weight_decay"])
        of_kind = typed[steps[0].dtype]
        if len(places) == 1:
            chosen = of_kind[places[0] : places[0] + 1]
        else:
            chosen = of_kind if len(places) == len(each) else of_kind[constant(tuple(places), each.device)]
        rates = chosen, group["lr"], decay, ok
        if with_master:
            multi_tensor.apply_master_(masters_of(parameters, context.states), parameters, steps, *rates)
            remember(parameters)
        else:
            multi_tensor.apply_(parameters, steps, *rates)


def _joined_decays(context: StepContext, shorter: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    """The weight decay of each parameter that is shortened, ``[]``."""
    by_group: dict[int, list[nn.Parameter]] = {}
    for parameter in shorter:
        by_group.setdefault(id(context.groups[parameter]), []).append(parameter)
    found: dict[nn.Parameter, Tensor] = {}
    for members in by_group.values():
        group = context.groups[members[0]]
        factors = torch.stack([shorter[parameter] for parameter in members])
        lr, decay = (rate_like(group[name], factors) for name in ("lr", "weight_decay"))
        found.update(zip(members, joined_decay(decay, factors, lr).unbind(), strict=True))
    return found


def joined_decay(weight_decay: Number, factor: Number, lr: Number) -> Number:
    """The weight decay of a step that also multiplies the parameter by ``factor``: ``1 - lr d = factor (1 - lr weight_decay)``.

    The factor is near 1, so that the small change is formed first. ``lr`` is not 0, or ``factor`` is 1.
    """
    shorter = 1 - factor
    if isinstance(shorter, Tensor):
        return torch.where(shorter != 0, shorter / lr, 0.0) + factor * weight_decay
    return (shorter / lr if shorter else 0.0) + factor * weight_decay
