"""One step of LNB: average, solve, bound, apply. Data flows one way.

Notation: ``g~`` the averaged gradient, ``h`` the direction (``metric h = g~``),
``theta <- theta - lr (scale h + weight_decay theta)``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from lnb.averages import adam_directions, average_gradients, by_device
from lnb.config import Config
from lnb.damping import Agreement, Gain, observe_agreement, radii
from lnb.master import has_master, masters_of, remember
from lnb.scratch import Scratch
from lnb.solve import Direction, solve
from lnb.trust_region import layer_scale, rms_scale
from lnb.verdict import Verdict
from lnb.weight_bound import WeightBound, measure_norms
from lnb.work import BlockWork, Work
from lnb_kernels import multi_tensor
from lnb_kernels._captured import keep_if_captured
from lnb_kernels.balanced.reference import row_agreement
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
    agreement = None
    if config.damping == "agreement" and work.blocks:
        agreement = observe_agreement(work.blocks, verdict, config)
    solved = solve(work.blocks, averages, verdict, agreement)
    if config.others == "adamw":
        others = adam_directions(work, averages, verdict, config.b_others)
    else:
        others = [averages[parameter] for parameter in work.others]
    directions = [part for direction in solved for part in direction.parts] + others
    owners = _owners(work)
    products = _products(work, solved, directions, averages, owners)
    scales = _scales(work, directions, products, owners, verdict, config)
    shorter: dict[nn.Parameter, Tensor] = {}
    if work.blocks and (config.damping != "none" or config.max_relative_change is not None):
        lengths = _Lengths(solved, averages, work, agreement, scales)
        directions = [part for direction in solved for part in direction.parts] + others
        scales, shorter = _shortened(work, solved, lengths, agreement, scales, verdict, config)
    _apply(work, directions, scales[_index(owners, scales.device)], shorter, verdict, config)
    return solved, products


class _Lengths:
    """Squared norms of every layer's direction, ``[layers]``; rows are multiplied by their agreement where they were not.

    Attributes:
        free: ``||h_W||^2`` before agreement; 0 where it is not finite, which has no step.
        damped: after it.
        averages: ``||g~||^2`` of weight and bias; None without agreement.
    """

    def __init__(
        self,
        solved: list[Direction],
        averages: dict[nn.Parameter, Tensor],
        work: Work,
        agreement: Agreement | None,
        like: Tensor,
    ) -> None:
        open_ones = [i for i, direction in enumerate(solved) if direction.squared_norm is None]
        norms = _squares([solved[i].parts[0] for i in open_ones], like)
        for i, norm in zip(open_ones, norms, strict=True):
            solved[i] = dataclasses.replace(solved[i], squared_norm=norm, free_squared_norm=norm)
        if agreement is not None:
            late = [i for i in open_ones if not solved[i].damped]
            for i in late:
                self._damp(i, work.blocks[i], solved, averages, agreement)
            norms = _squares([solved[i].parts[0] for i in late], like)
            for i, norm in zip(late, norms, strict=True):
                solved[i] = dataclasses.replace(solved[i], squared_norm=norm)
        self.free = _gathered([direction.free_squared_norm for direction in solved], like)
        self.damped = _gathered([direction.squared_norm for direction in solved], like)
        self.averages = (
            None if agreement is None else _gathered([direction.squared_average for direction in solved], like)
        )

    @staticmethod
    def _damp(
        i: int, work: BlockWork, solved: list[Direction], averages: dict[nn.Parameter, Tensor], agreement: Agreement
    ) -> None:
        shape = work.block.shape[:2]
        given = [averages[parameter].view(*shape, -1) for parameter in work.parameters]
        factor = row_agreement(agreement.rows[i], agreement.noise, *given)
        parts = [(part.view(*shape, -1) * factor.to(part.dtype)).view_as(part) for part in solved[i].parts]
        square = torch.stack([part.to(factor.dtype).square().sum() for part in given]).sum()
        solved[i] = dataclasses.replace(solved[i], parts=parts, squared_average=square, damped=True)


def _squares(tensors: list[Tensor], like: Tensor) -> list[Tensor]:
    """Squared norms, in the dtype of ``like``."""
    return [norm.square() for norm in torch._foreach_norm(tensors, dtype=like.dtype)] if tensors else []


def _gathered(values: list[Tensor | None], like: Tensor) -> Tensor:
    """``values`` in one tensor like ``like``; 0 for what is not finite."""
    found = torch.stack([value.to(like) for value in values if value is not None])
    return torch.where(found.isfinite(), found, 0.0)


def _shortened(
    work: Work,
    solved: list[Direction],
    lengths: _Lengths,
    agreement: Agreement | None,
    scales: Tensor,
    verdict: Verdict,
    config: Config,
) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    """``scales`` of layers and others, those of layers within the weights' bound and damped; what takes growth back."""
    layers = len(work.blocks)
    own = scales[:layers]
    lrs = [work.groups[layer.block.weight]["lr"] for layer in work.blocks]
    gain = Gain(work.blocks, verdict) if config.damping == "gain" else None
    if gain is not None:
        own = torch.minimum(own, gain.fractions(own) / config.min_norm)
    bound, shorter = None, {}
    if config.max_relative_change is not None:
        shorter = measure_norms(work.blocks, own, lengths.free, lrs, verdict)
        bound = WeightBound(work.blocks, config.max_relative_change, lrs, own.device)
        own = own * bound.factors(own, lengths.free)
    if agreement is not None and lengths.averages is not None:
        expected = torch.stack([value.to(own) for value in agreement.layers])
        own = own * radii(work.blocks, lengths.averages, expected, verdict)
    if bound is not None:
        bound.note_growth(own, lengths.damped, verdict)
    if gain is not None:
        for layer, direction, scale, lr in zip(work.blocks, solved, own.unbind(), lrs, strict=True):
            gain.remember(layer, direction.parts, scale * lr)
    return torch.cat([own, scales[layers:]]), shorter


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
    """What the directions of every layer and every other parameter are multiplied by; 0 where they are not finite."""
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
    return torch.where(finite, scales, 0.0).clamp(max=most**_LARGEST_SCALE)


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


def _apply(
    work: Work,
    directions: list[Tensor],
    scales: Tensor,
    shorter: dict[nn.Parameter, Tensor],
    verdict: Verdict,
    config: Config,
) -> None:
    """``theta <- theta - lr (scale h + weight_decay theta)``, one call per parameter group, device and use of masters.

    Parameters in ``shorter`` are multiplied by its factor first, in a copy: one at a time, so that one copy is in memory.
    """
    batches: dict[tuple[int, torch.device, bool], list[tuple[nn.Parameter, Tensor, int]]] = {}
    for i, (parameter, direction) in enumerate(zip(work.parameters, directions, strict=True)):
        group, device, with_master = work.groups[parameter], parameter.device, has_master(parameter, config)
        if parameter in shorter:
            scale = scales[i : i + 1].to(device, direction.dtype)
            rates = scale, group["lr"], group["weight_decay"], verdict.on(device)
            _apply_shorter(parameter, direction, shorter[parameter], rates, work.states if with_master else None)
        else:
            batches.setdefault((id(group), device, with_master), []).append((parameter, direction, i))
    for (_, device, with_master), triples in batches.items():
        group = work.groups[triples[0][0]]
        parameters, steps, positions = map(list, zip(*triples, strict=True))
        chosen = scales if len(triples) == len(work.parameters) else scales[_index(tuple(positions), scales.device)]
        rates = chosen.to(device, steps[0].dtype), group["lr"], group["weight_decay"], verdict.on(device)
        if with_master:
            multi_tensor.apply_master_(masters_of(parameters, work.states), parameters, steps, *rates)
            remember(parameters)
        else:
            multi_tensor.apply_(parameters, steps, *rates)


def _apply_shorter(
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
