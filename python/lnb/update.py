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
    scales, verdict = _scales(work, solved, others, verdict, config)
    if not verdict.rejected:
        _apply(work, directions + others, scales, verdict)
    return verdict, solved


def _scales(
    work: Work, solved: list[Direction], others: list[Tensor], verdict: Verdict, config: Config
) -> tuple[list[Tensor], Verdict]:
    """What every parameter's direction is multiplied by, in the order of ``work.parameters``.

    A direction with NaN or inf makes its product with ``g~`` NaN or inf: no other check of the directions is needed.
    """
    device = work.parameters[0].device
    in_region = [direction.matrix for direction in solved] + ([] if config.others == "adamw" else others)
    own = [direction.product for direction in solved] + [rest.square().sum() for rest in in_region[len(solved) :]]
    scales: list[Tensor] = []
    if own:
        products = torch.stack([product.to(device, torch.float64) for product in own])
        verdict = verdict.narrow(products.isfinite().all())
        if config.trust_region == "rms":
            scales = rms_scale(in_region)
        elif config.trust_region == "global":
            scales = [layer_scale(products.sum(), config.min_norm)] * len(own)
        else:
            scales = list(layer_scale(products, config.min_norm).unbind())
    of_blocks, of_others = scales[: len(solved)], scales[len(solved) :]
    if config.trust_region == "spectral":  # the size is in the direction
        of_blocks = [torch.ones_like(scale) for scale in of_blocks]
    if config.others == "adamw":
        of_others = [torch.full((), config.others_lr, device=direction.device) for direction in others]
    return [scale for scale, w in zip(of_blocks, work.blocks, strict=True) for _ in w.parameters] + of_others, verdict


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
