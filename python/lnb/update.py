"""One step of LNB: average, solve, bound, apply. Data flows one way.

Notation: ``g~`` the averaged gradient, ``h`` the direction (``metric h = g~``),
``theta <- theta - lr (scale h + weight_decay theta)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lnb.averages import adam_directions, average_gradients
from lnb.config import Config
from lnb.solve import Direction, solve
from lnb.trust_region import layer_scale, rms_scale
from lnb.verdict import Verdict
from lnb.work import Work
from lnb_kernels import multi_tensor


def run(work: Work, verdict: Verdict, config: Config) -> tuple[Verdict, list[Direction]]:
    """Make the step, as far as ``verdict`` allows.

    Returns:
        The verdict, narrowed by the directions being finite, and the layers' directions.
    """
    averages = average_gradients(work, verdict, config)
    solved = solve(work.blocks, averages, verdict, config)
    directions = [part for w, d in zip(work.blocks, solved, strict=True) for part in w.block.split(d.matrix)]
    adam = config.others == "adamw"
    if adam:
        others = adam_directions(work, averages, verdict, config.b_others)
    else:
        others = [averages[parameter] for parameter in work.others]
    scales, verdict = _scales(work, solved, directions, others, verdict, config)
    if not verdict.rejected:
        _apply(work, directions + others, scales, verdict)
    return verdict, solved


def _scales(
    work: Work,
    solved: list[Direction],
    directions: list[Tensor],
    others: list[Tensor],
    verdict: Verdict,
    config: Config,
) -> tuple[list[Tensor], Verdict]:
    """What every parameter's direction is multiplied by, in the order of ``work.parameters``.

    A direction with NaN or inf makes its product with ``g~`` NaN or inf: no other check of the directions is needed.
    """
    device = work.parameters[0].device
    adam = config.others == "adamw"
    own = [direction.product for direction in solved]
    if not adam:
        own += [direction.square().sum() for direction in others]
    products = (
        torch.stack([product.to(device, torch.float64) for product in own]) if own else torch.ones(1, device=device)
    )
    verdict = verdict.narrow(products.isfinite().all())
    if config.trust_region == "global":
        each = layer_scale(products.sum(), config.min_norm).expand_as(products)
    elif config.trust_region == "rms":
        each = products
    else:
        each = layer_scale(products, config.min_norm)
        if config.trust_region == "spectral":
            each = torch.cat([torch.ones_like(each[: len(solved)]), each[len(solved) :]])
    scales: list[Tensor] = []
    if config.trust_region == "rms":
        scales = rms_scale([direction.matrix for direction in solved])
    else:
        scales = list(each[: len(solved)].unbind())
    per_part = [scale for scale, w in zip(scales, work.blocks, strict=True) for _ in w.parameters]
    if adam:
        return per_part + [torch.full((), config.others_lr, device=d.device) for d in others], verdict
    if config.trust_region == "rms":
        return per_part + (rms_scale(others) if others else []), verdict
    return per_part + list(each[len(solved) :].unbind()), verdict


def _apply(work: Work, directions: list[Tensor], scales: list[Tensor], verdict: Verdict) -> None:
    """``theta <- theta - lr (scale h + weight_decay theta)``, one call per parameter group and device."""
    batches: dict[tuple[int, torch.device], list[tuple[nn.Parameter, Tensor, Tensor]]] = {}
    for parameter, direction, scale in zip(work.parameters, directions, scales, strict=True):
        key = id(work.groups[parameter]), parameter.device
        batches.setdefault(key, []).append((parameter, direction, scale))
    for (_, device), triples in batches.items():
        group = work.groups[triples[0][0]]
        parameters, steps, factors = map(list, zip(*triples, strict=True))
        stacked = torch.stack([factor.to(device, steps[0].dtype) for factor in factors])
        multi_tensor.apply_(parameters, steps, stacked, group["lr"], group["weight_decay"], verdict.on(device))
