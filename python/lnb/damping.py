"""How far steps stay inside the trust region: what shortens them beside its bounds.

A trust region bounds the length of a step; whether so long a step pays is seen from what gradients do after it. Two rules
read that, each from numbers that a step has anyway, without a look at the loss and without waiting for a device.

**Agreement**, for noisy gradients. With ``g~_i`` the average of the gradients of row ``i`` of a layer, and ``v_i`` the average of
their squared norms, the row's step is multiplied by

    ``a min(1, a / a_0)``,    ``a = min(1, ||g~_i|| / sqrt(v_i))``

``a`` is 1 where all gradients are the same and ``a_0`` where they are independent noise (:func:`noise_level`). After steps that
are too long, gradients point back: the average cancels and ``a`` falls below ``a_0``. Near a minimum, and where the moves of
many layers compound, this makes steps as short as needed; with noise alone they are a quarter of the region. It is the
ratio of Adam (Kingma and Ba, 2015), taken over a neuron's row instead of one entry. Each layer also has a radius, the share
of its region that it uses: it shrinks while the layer's gradients oppose each other and grows slowly otherwise
(:func:`radii`), so that a step length that was too long is not tried again at once.

**Gain**, for gradients without noise: Levenberg and Marquardt's rule, per layer. Along the last step ``D`` of a layer, the
slope of the loss was ``<g, D>`` and is now ``<g', D>``; were it a parabola, the best length would have been
``1 / (1 - <g', D> / <g, D>)`` times as long. The fraction ``f`` of the direction ``h`` that the layer may go is multiplied by
nine tenths of that, between 1/4 and 1.3, and is at most 1: the Newton step of a layer whose loss is ``||y - y*||^2 / 2``. The
slope now includes what the other layers' steps did, so layers that correct one error together share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.statistics import bias_correction
from lnb.verdict import Verdict
from lnb.work import BlockWork
from lnb_kernels import multi_tensor

_FIRST_FRACTION = 0.3
_SAFETY = 0.9
_SHRINK, _GROW = 0.25, 1.3
_OPPOSED = 0.5
_RADIUS_SHRINK, _RADIUS_GROW, _LEAST_RADIUS = 0.9, 1.02, 1e-4


@dataclass(frozen=True)
class Agreement:
    """What the agreement of this step's gradients with those before is judged by.

    Attributes:
        rows: ``v``, the mean square of each row's gradients, ``[groups, d_out]`` of every layer.
        layers: ``||g~||^2`` of every layer to be expected of independent gradients.
        noise: ``a_0``.
    """

    rows: list[Tensor]
    layers: list[Tensor]
    noise: float

    def among(self, layers: list[int]) -> Agreement:
        """That of some layers."""
        return Agreement([self.rows[i] for i in layers], [self.layers[i] for i in layers], self.noise)


def noise_level(config: Config) -> float:
    """``a_0``: the norm of the average of many independent gradients of unit norm.

    ``m = b m + (1 - b) g`` has the mean square ``q = (1 - b) / (1 + b)``; the look-ahead ``b m + (1 - b) g``, in which ``g``
    counts twice, ``b^4 q + (1 - b^2)^2``.
    """
    b = config.momentum
    square = (1 - b) / (1 + b)
    if config.nesterov:
        square = b**4 * square + (1 - b**2) ** 2
    return float(square**0.5)


def observe_agreement(works: list[BlockWork], verdict: Verdict, config: Config) -> Agreement:
    """Update what agreement is judged by with this step's gradients, after the averages of the gradients were.

    State of a layer's weight: ``row_square`` ``[groups, d_out]``, the average of ``||g_i||^2`` of decay ``b_rows``, weight and
    bias together; ``independent_square`` ``[]``, the sum of ``||g_s||^2`` times the squared weight of ``g_s`` in ``m``.
    """
    rows: dict[int, Tensor] = {}
    layers: dict[int, Tensor] = {}
    by_device: dict[torch.device, list[int]] = {}
    for i, work in enumerate(works):
        by_device.setdefault(work.block.weight.device, []).append(i)
    for members in by_device.values():
        of_device = [works[i] for i in members]
        squares = _row_squares(of_device)
        counts = torch.stack([work.state["step"] for work in of_device]).clamp(min=1)
        rows.update(zip(members, _mean_squares(of_device, squares, counts, verdict, config.b_rows), strict=True))
        layers.update(zip(members, _expected(of_device, squares, counts, verdict, config), strict=True))
    every = range(len(works))
    return Agreement([rows[i] for i in every], [layers[i] for i in every], noise_level(config))


def _mean_squares(
    works: list[BlockWork], squares: list[Tensor], counts: Tensor, verdict: Verdict, decay: float
) -> Sequence[Tensor]:
    """``v``, corrected for its start at zero."""
    if any("row_square" not in work.state for work in works):  # at first, or where an older state was loaded
        for work, square, past in zip(works, squares, bias_correction(decay, counts - 1).unbind(), strict=True):
            start = (square * past.to(square.dtype)).nan_to_num(0.0, 0.0, 0.0)  # a step that is not made leaves no NaN
            work.state.setdefault("row_square", start)
    kept = [work.state["row_square"] for work in works]
    multi_tensor.ema_(kept, squares, decay, verdict.on(counts.device))
    return torch._foreach_div(kept, list(bias_correction(decay, counts).to(squares[0].dtype).unbind()))


def _expected(
    works: list[BlockWork], squares: list[Tensor], counts: Tensor, verdict: Verdict, config: Config
) -> Sequence[Tensor]:
    """``||g~||^2`` of every layer, were its gradients independent.

    ``g~`` weighs this step's gradient by ``share (1 - b) + take`` and those before by ``share`` times their weight in ``m``,
    where ``share = b / (1 - b^t)`` and ``take = 1 - b`` with the look-ahead, else ``1 / (1 - b^t)`` and 0.
    """
    b = config.momentum
    fresh = torch.stack([square.sum() for square in squares])
    past = torch.stack([work.state.get("independent_square", fresh.new_zeros(())) for work in works]) * b**2
    kept = past + (1 - b) ** 2 * fresh
    for work, value in zip(works, kept.unbind(), strict=True):
        if "independent_square" not in work.state:
            work.state["independent_square"] = torch.zeros_like(value)
    stored = [work.state["independent_square"] for work in works]
    ok = verdict.on(counts.device)
    new = kept if ok is None else torch.where(ok, kept, torch.stack(stored))
    torch._foreach_copy_(stored, list(new.unbind()))
    share = ((b if config.nesterov else 1.0) / bias_correction(b, counts)).to(fresh.dtype)
    take = 1 - b if config.nesterov else 0.0
    return (share.square() * past + (share * (1 - b) + take).square() * fresh).unbind()


def radii(works: list[BlockWork], averages: Tensor, expected: Tensor, verdict: Verdict) -> Tensor:
    """Update the radius of every layer, the share of its region that it uses, and return them, ``[layers]``, in (0, 1].

    It shrinks by a tenth while the layer's average is shorter than half of what independent gradients would make it, which
    only gradients that point against each other do, and else grows by a fiftieth. State of a layer's weight: ``radius``.

    Args:
        works: the layers.
        averages: ``||g~||^2`` of each, ``[layers]``.
        expected: the same, of independent gradients.
        verdict: whether state may change.
    """
    for work in works:
        if "radius" not in work.state:
            work.state["radius"] = torch.ones((), dtype=averages.dtype, device=work.block.weight.device)
    stored = [work.state["radius"] for work in works]
    old = torch.stack([radius.to(averages.device) for radius in stored])
    opposed = averages < _OPPOSED**2 * expected
    new = (old * torch.where(opposed, _RADIUS_SHRINK, _RADIUS_GROW)).clamp(_LEAST_RADIUS, 1.0)
    ok = verdict.on(averages.device)
    if ok is not None:
        new = torch.where(ok, new, old)
    torch._foreach_copy_(stored, [value.to(radius.device) for value, radius in zip(new.unbind(), stored, strict=True)])
    return new


def _row_squares(works: list[BlockWork]) -> list[Tensor]:
    """``||g_i||^2`` of every row of this step's gradients, ``[groups, d_out]`` per layer; what no number can hold is cut."""
    counts = [work.block.shape[0] * work.block.shape[1] for work in works]
    norms = multi_tensor.squared_row_norms([_gradient(work.parameters[0]) for work in works], counts)
    found = list(norms.split(counts))
    biased = [i for i, work in enumerate(works) if work.with_bias]
    if biased:
        of_biases = [counts[i] for i in biased]
        biases = multi_tensor.squared_row_norms([_gradient(works[i].parameters[1]) for i in biased], of_biases)
        torch._foreach_add_([found[i] for i in biased], list(biases.split(of_biases)))
    most = torch.finfo(norms.dtype).max ** 0.75  # an infinite mean square would never end
    return [square.clamp(max=most).view(work.block.shape[:2]) for square, work in zip(found, works, strict=True)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class Gain:
    """The fractions of one step: of this step's directions, by what the last steps gained.

    State of a layer's weight: ``fraction`` ``f``, ``last_slope`` ``<g, D>``, and of each parameter of the layer
    ``last_step``, ``D``.
    """

    def __init__(self, works: list[BlockWork], verdict: Verdict) -> None:
        self._works = works
        self._verdict = verdict

    def fractions(self, like: Tensor) -> Tensor:
        """``f`` of every layer, ``[layers]``, dtype and device as ``like``."""
        found = []
        for work in self._works:
            state = work.state
            if "fraction" not in state:
                state["fraction"] = torch.full((), _FIRST_FRACTION, dtype=like.dtype, device=work.block.weight.device)
            if "last_slope" in state and all("last_step" in work.states[p] for p in work.parameters):
                before = state["last_slope"]
                change = (_SAFETY / (1 - self._slope(work) / before).clamp(min=1e-9)).clamp(_SHRINK, _GROW)
                change = torch.where(before != 0, change, 1.0)  # no step before tells nothing
                self._verdict.commit(state["fraction"], (state["fraction"] * change).clamp(max=1))
            found.append(state["fraction"].to(like.device))
        return torch.stack(found)

    def remember(self, work: BlockWork, steps: list[Tensor], scale: Tensor) -> None:
        """Note the step ``-scale steps`` that the layer's parameters are about to make."""
        for parameter, step in zip(work.parameters, steps, strict=True):
            state = work.states[parameter]
            moved = (step * -scale.to(step.device, step.dtype)).nan_to_num(0.0, 0.0, 0.0).view_as(parameter)
            if "last_step" not in state:
                state["last_step"] = torch.zeros_like(moved)
            self._verdict.commit(state["last_step"], moved)
        slope = self._slope(work)
        if "last_slope" not in work.state:
            work.state["last_slope"] = torch.zeros_like(slope)
        self._verdict.commit(work.state["last_slope"], slope)

    def _slope(self, work: BlockWork) -> Tensor:
        """``<g, D>`` of this step's gradients and the step remembered."""
        steps = [work.states[parameter]["last_step"] for parameter in work.parameters]
        return multi_tensor.dot([_gradient(p) for p in work.parameters], steps, [0] * len(steps)).squeeze(0)
