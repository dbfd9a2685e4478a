"""One step of LNB: average, solve, bound, apply. Data flows one way.

Notation: ``g~`` the averaged gradient, ``h`` the direction (``metric h = g~``),
``theta <- theta - lr (scale h + weight_decay theta)``.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from lnb.averages import adam_directions, average_gradients, by_device
from lnb.config import Config
from lnb.master import has_master, masters_of, remember
from lnb.scratch import Scratch
from lnb.solve import Direction, solve
from lnb.trust_region import layer_scale, rms_scale
from lnb.verdict import Verdict
from lnb.work import Work
from lnb_kernels import multi_tensor
from lnb_kernels._captured import keep_if_captured
from lnb_kernels.scaling import sum_dtype

_LARGEST_SCALE = 0.875  # power of the largest number
_TINY = 2.0**-64


def run(work: Work, verdict: Verdict, config: Config, scratch: Scratch) -> tuple[list[Direction], Tensor]:
    """Make the step, as far as ``verdict`` allows. What has no finite direction stands still, alone.

    Returns:
        The layers' directions, and ``<h, g~>`` of every layer and of every other parameter, ``[layers + others]``: NaN or
        infinite where there is no finite direction.
    """
    averages = average_gradients(work, verdict, config, scratch)
    solved = solve(work.blocks, averages, verdict)
    if config.others == "adamw":
        others = adam_directions(work, averages, verdict, config.b_others)
    else:
        others = [averages[parameter] for parameter in work.others]
    directions = [part for direction in solved for part in direction.parts] + others
    owners = _owners(work)
    products = _products(work, solved, directions, averages, owners)
    scales = _scales(work, directions, products, owners, verdict, config)
    _apply(work, directions, scales, verdict, config)
    return solved, products


def _products(
    work: Work,
    solved: list[Direction],
    directions: list[Tensor],
    averages: dict[nn.Parameter, Tensor],
    owners: tuple[int, ...],
) -> Tensor:
    """``<h, g~>`` of every layer, then of every other parameter, ``[layers + others]``.

    A direction with NaN or inf makes its product NaN or inf: no other check of the directions is needed. It is NaN also for
    a layer whose inputs are too large to be squared, which has no direction.
    """
    device = work.parameters[0].device
    total = torch.zeros(len(work.blocks) + len(work.others), dtype=sum_dtype(device), device=device)
    known = {i: direction.product for i, direction in enumerate(solved) if direction.product is not None}
    if known:
        values = torch.stack([product.to(device) for product in known.values()])
        total.index_copy_(0, _index(tuple(known), device), values.to(total.dtype))
    for members in by_device(work.parameters).values():
        chosen = set(members)
        every = zip(work.parameters, directions, owners, strict=True)
        triples = [t for t in every if t[0] in chosen and t[2] not in known]
        if not triples:
            continue
        place = {owner: i for i, owner in enumerate(dict.fromkeys(owner for _, _, owner in triples))}
        of_each = [place[owner] for _, _, owner in triples]
        sums = multi_tensor.dot([d for _, d, _ in triples], [averages[p] for p, _, _ in triples], of_each)
        total.index_add_(0, _index(tuple(place), device), sums.to(device, total.dtype))
    flags = {i: block.squarable for i, block in enumerate(work.blocks) if block.squarable is not None}
    if flags:
        index = _index(tuple(flags), device)
        squarable = torch.stack([flag.to(device, non_blocking=True) for flag in flags.values()])
        total.index_copy_(0, index, torch.where(squarable, total[index], math.nan))
    return total


def _owners(work: Work) -> tuple[int, ...]:
    """For each of ``work.parameters``, which layer it is of; every other parameter is a layer of its own."""
    of_blocks = [i for i, block in enumerate(work.blocks) for _ in block.parameters]
    return (*of_blocks, *range(len(work.blocks), len(work.blocks) + len(work.others)))


def _index(values: tuple[int, ...], device: torch.device) -> Tensor:
    """``values`` on ``device``, copied there once: a copy in every step would stall it, and cannot be captured in a graph."""
    index = _copied(values, device)
    keep_if_captured(index)
    return index


@functools.lru_cache(maxsize=64)
def _copied(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def _scales(
    work: Work,
    directions: list[Tensor],
    products: Tensor,
    owners: tuple[int, ...],
    verdict: Verdict,
    config: Config,
) -> Tensor:
    """What every parameter's direction is multiplied by, in the order of ``work.parameters``; 0 where it is not finite."""
    finite = products.isfinite()
    products = torch.where(finite, products, 0.0)
    layers = len(work.blocks)
    in_region = layers if config.others == "adamw" else len(products)
    region = config.trust_region
    if region == "rms":
        squares = torch.zeros_like(products)
        sizes = [0] * len(products)
        wide = torch._foreach_norm(directions, dtype=products.dtype)  # in which no square overflows
        norms = torch.stack([n.to(products.device) for n in wide])
        squares.index_add_(0, _index(owners, products.device), norms.square())
        for owner, direction in zip(owners, directions, strict=True):
            sizes[owner] += direction.numel()
        if verdict.known:
            _raise_tiny(directions, squares, owners)
        scales = rms_scale(squares, _index(tuple(sizes), products.device))
    elif region == "global":
        scales = layer_scale(products[:in_region].sum(), config.min_norm).expand(len(products)).clone()
    else:
        scales = layer_scale(products, config.min_norm)
        if region != "layer":  # the size is in the direction
            scales[:layers] = 1
    if config.others == "adamw":
        scales[layers:] = config.others_lr
    # What a direction's dtype cannot hold would turn entries of 0 into NaN; lr has the room of the power.
    most = min(torch.finfo(dtype).max for dtype in {direction.dtype for direction in directions})
    scales = torch.where(finite, scales, 0.0).clamp(max=most**_LARGEST_SCALE)
    return scales[_index(owners, scales.device)]


def _raise_tiny(directions: list[Tensor], squares: Tensor, owners: tuple[int, ...]) -> None:
    """Bring directions that no float32 factor brings to the size of a step to unit size, with their ``squares``.

    A device that the host does not wait for is not asked whether there are any: there, directions below 1e-34 move
    parameters less than they should.
    """
    tiny = (squares > 0) & (squares < _TINY**2)
    if not bool(tiny.any()):
        return
    units = torch.where(tiny, torch.ldexp(torch.ones_like(squares), -torch.frexp(squares.sqrt()).exponent), 1.0)
    squares.mul_(units.square())
    for owner, direction in zip(owners, directions, strict=True):
        if bool(tiny[owner]):
            direction.copy_(direction * units[owner : owner + 1])  # in float64: the factor may exceed float32


def _apply(work: Work, directions: list[Tensor], scales: Tensor, verdict: Verdict, config: Config) -> None:
    """``theta <- theta - lr (scale h + weight_decay theta)``, one call per parameter group, device and use of masters."""
    batches: dict[tuple[int, torch.device, bool], list[tuple[nn.Parameter, Tensor, int]]] = {}
    for i, (parameter, direction) in enumerate(zip(work.parameters, directions, strict=True)):
        key = id(work.groups[parameter]), parameter.device, has_master(parameter, config)
        batches.setdefault(key, []).append((parameter, direction, i))
    for (_, device, with_master), triples in batches.items():
        group = work.groups[triples[0][0]]
        parameters, steps, positions = map(list, zip(*triples, strict=True))
        chosen = scales if len(batches) == 1 else scales[_index(tuple(positions), scales.device)]
        rates = chosen.to(device, steps[0].dtype), group["lr"], group["weight_decay"], verdict.on(device)
        if with_master:
            multi_tensor.apply_master_(masters_of(parameters, work.states), parameters, steps, *rates)
            remember(parameters)
        else:
            multi_tensor.apply_(parameters, steps, *rates)
