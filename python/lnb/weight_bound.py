"""The second trust region: no step changes a layer's weights by more than a share of themselves.

The trust regions of :mod:`lnb.trust_region` bound what a step does to a layer's outputs, for the inputs seen so far. Where these
hardly vary - in deep plain networks, after one row, with a dead feature - the metric is nearly singular there, a short
step in function space is a huge one in weight space, and the next inputs, or the next layer, see all of it. So a layer's
step ``D = (D_W, D_b)`` is shortened as a whole until

    ``||D_W||_F <= kappa max(||W||_F, W_0)``,    ``kappa = min(c lr, 1/4)``

``c`` is ``max_relative_change``; ``kappa`` follows ``lr``, and with it every schedule. ``W_0`` is the norm of PyTorch's usual
initialisation of the layer, ``sqrt(d_out / 3)``, so that weights that start at zero can move. The bound does not depend on the
scale of inputs, outputs or loss. Relatives bound or fix relative steps alone: LARS and LAMB (You et al.), and normalised
versions of Muon and Adam.

A step of relative length ``r`` that is orthogonal to the weights, as steps of noise are, makes them longer by ``r^2 / 2`` of
themselves. Such growth of every layer compounds, and says nothing about the function wanted; it is summed up and taken back
when the norm is measured, at refreshes: the weights then walk on a sphere, unless gradients point along them. Steps of
lengths ``r_s``, relative to the norm measured last, have made the weights ``sqrt(1 + sum r_s^2)`` times as long.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lnb.blocks import Block
from lnb.verdict import Verdict
from lnb.work import BlockWork
from lnb_kernels.scaling import sum_dtype

LARGEST_CHANGE = 0.25


def usual_norm(block: Block) -> float:
    """``W_0``: entries uniform in ``+-1 / sqrt(d_in)``, as ``nn.Linear`` draws them, have the mean square ``1 / (3 d_in)``."""
    groups, d_out, _ = block.shape
    return math.sqrt(groups * d_out / 3)


def measure_norms(
    works: list[BlockWork], scales: Tensor, squared_norms: Tensor, lrs: list[float | Tensor], verdict: Verdict
) -> dict[nn.Parameter, Tensor]:
    """Measure the weights' norms, of the layers that are refreshed or have none yet; the growth of these is taken back.

    Args:
        works: the layers.
        scales: what the direction of each is multiplied by beside ``lr``, ``[layers]``.
        squared_norms: ``||D_W||^2`` of the directions. Growth is left where this, the scale or ``lr`` is 0: such a layer
            stands still.
        lrs: each layer's learning rate.
        verdict: whether anything may change.

    Returns:
        By what the step multiplies weights to take their growth back, ``[]`` each. Norms are those after it. It is left to
        the step, so that a step that breaks off leaves no weight between two of its values.
    """
    by_device: dict[torch.device, list[int]] = {}
    for i, work in enumerate(works):
        if work.moments is not None or bool(work.inputs) or "weight_norm" not in work.state:
            by_device.setdefault(work.block.weight.device, []).append(i)
    shorter: dict[nn.Parameter, Tensor] = {}
    for device, members in by_device.items():
        due = [works[i] for i in members]
        grown = [i for i in members if "growth" in works[i].state]
        if grown:
            moving = (scales != 0) & (squared_norms != 0) & (_gathered(lrs, scales.dtype, scales.device) != 0)
            each = moving.to(device, non_blocking=True).unbind()
            shorter |= _growth_taken([works[i] for i in grown], torch.stack([each[i] for i in grown]), verdict)
        norms = torch._foreach_norm([work.block.weight for work in due], dtype=sum_dtype(device))
        for work, norm in zip(due, norms, strict=True):
            if "weight_norm" not in work.state:
                work.state["weight_norm"] = norm.new_zeros(())
            if "growth" not in work.state:
                work.state["growth"] = norm.new_zeros(())
            factor = shorter.get(work.block.weight)
            verdict.commit(work.state["weight_norm"], norm if factor is None else norm * factor)
    return shorter


def _growth_taken(works: list[BlockWork], moving: Tensor, verdict: Verdict) -> dict[nn.Parameter, Tensor]:
    ok = verdict.on(moving.device)
    taken = moving if ok is None else moving & ok
    stored = [work.state["growth"] for work in works]
    growth = torch.stack(stored)
    factors = torch.where(taken, (1 + 2 * growth).rsqrt(), 1.0)
    torch._foreach_copy_(stored, list(torch.where(taken, 0.0, growth).unbind()))
    return dict(zip([work.block.weight for work in works], factors.unbind(), strict=True))


class WeightBound:
    """The bounds of one step.

    Args:
        works: the layers.
        change: ``c``.
        lrs: each layer's learning rate.
        device: where the numbers of all layers come together.
    """

    def __init__(self, works: list[BlockWork], change: float, lrs: list[float | Tensor], device: torch.device) -> None:
        self._works = works
        wide = sum_dtype(device)
        self._rates = _gathered(lrs, wide, device)
        self._limits = (LARGEST_CHANGE / self._rates).clamp(max=change)  # kappa / lr
        norms = torch.stack([work.state["weight_norm"].to(device, wide) for work in works])
        usual = torch.stack([torch.full((), usual_norm(work.block), dtype=wide, device=device) for work in works])
        self._norms = torch.maximum(norms, usual)

    def factors(self, scales: Tensor, squared_norms: Tensor) -> Tensor:
        """What shortens each layer's step, in (0, 1], ``[layers]``.

        Args:
            scales: what its direction is multiplied by beside ``lr``.
            squared_norms: ``||D_W||^2`` of the direction.
        """
        lengths = scales * squared_norms.sqrt()
        return (self._limits * self._norms / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1)

    def note_growth(self, scales: Tensor, squared_norms: Tensor, verdict: Verdict) -> None:
        """Add this step's growth, half its squared relative length, to what is taken back."""
        growth = 0.5 * squared_norms * (self._rates * scales / self._norms).square()
        counts = growth.isfinite()
        ok = verdict.on(growth.device)
        added = torch.where(counts if ok is None else counts & ok, growth, 0.0).unbind()
        kept = [work.state["growth"] for work in self._works]
        torch._foreach_add_(kept, [value.to(of.device) for value, of in zip(added, kept, strict=True)])


def _gathered(lrs: list[float | Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rates as a tensor ``[layers]``. Numbers are filled in on the device: a copy from the host would stall it."""
    made: dict[int, Tensor] = {}
    found = []
    for lr in lrs:
        if id(lr) not in made:
            made[id(lr)] = (
                lr.to(device, dtype) if isinstance(lr, Tensor) else torch.full((), lr, dtype=dtype, device=device)
            )
        found.append(made[id(lr)])
    return torch.stack(found)
