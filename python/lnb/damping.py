"""How far steps stay inside the trust region: what shortens them beside its bounds.

A trust region bounds the length of a step; whether so long a step pays is seen from what gradients do after it. Two rules
read that, each from numbers that a step has anyway, without a look at the loss and without waiting for a device.

**Agreement**, for noisy gradients. With ``g~_i`` the average of the gradients of row ``i`` of a layer, and ``v_i`` the average of
their squared norms, the row's step is multiplied by

    ``a min(1, a / a_0)``,    ``a = min(1, ||g~_i|| / sqrt(v_i))``

``a`` is 1 where all gradients are the same and ``a_0`` where they are independent noise (:func:`noise_level`). After steps that
are too long, gradients point back: the average cancels and ``a`` falls below ``a_0``. Near a minimum, and where the moves of
many layers compound, this makes steps as short as needed; with noise alone they are a quarter of the region. It is the
ratio of Adam (Kingma and Ba, 2015), taken over a neuron's row instead of one entry.

**Gain**, for gradients without noise: Levenberg and Marquardt's rule, per layer. Along the last step ``D`` of a layer, the
slope of the loss was ``<g, D>`` and is now ``<g', D>``; were it a parabola, the best length would have been
``1 / (1 - <g', D> / <g, D>)`` times as long. The fraction ``f`` of the direction ``h`` that the layer may go is multiplied by nine
tenths of that, between 1/4 and 1.3, and is at most 1: the Newton step of a layer whose loss is ``||y - y*||^2 / 2``. The
slope now includes what the other layers' steps did, so layers that correct one error together share it.
"""

from __future__ import annotations

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


def noise_level(config: Config) -> float:
    """``a_0``: the norm of the average of many independent gradients of unit norm.

    ``m = b m + (1 - b) g`` has the mean square ``q = (1 - b) / (1 + b)``; the look-ahead ``b m + (1 - b) g``, in which ``g`` counts
    twice, ``b^4 q + (1 - b^2)^2``.
    """
    b = config.momentum
    square = (1 - b) / (1 + b)
    if config.nesterov:
        square = b**4 * square + (1 - b**2) ** 2
    return float(square**0.5)


def mean_row_squares(works: list[BlockWork], verdict: Verdict, decay: float) -> list[Tensor]:
    """Update ``v`` of every layer's rows with this step's gradients; returns it corrected for its start, ``[groups, d_out]``.

    Weight and bias count together. The averages of the gradients have made this step already: their count is used.
    """
    found: dict[int, Tensor] = {}
    by_device: dict[torch.device, list[int]] = {}
    for i, work in enumerate(works):
        by_device.setdefault(work.block.weight.device, []).append(i)
    for device, members in by_device.items():
        of_device = [works[i] for i in members]
        squares = _row_squares(of_device)
        counts = torch.stack([work.state["step"] for work in of_device])
        for work, square, before in zip(of_device, squares, bias_correction(decay, counts - 1).unbind(), strict=True):
            if "row_square" not in work.state:  # also where a state of an earlier version was loaded
                work.state["row_square"] = square * before.to(square.dtype)
        kept = [work.state["row_square"] for work in of_device]
        multi_tensor.ema_(kept, squares, decay, verdict.on(device))
        corrections = bias_correction(decay, counts.clamp(min=1)).to(squares[0].dtype).unbind()
        found.update(zip(members, torch._foreach_div(kept, corrections), strict=True))
    return [found[i] for i in range(len(works))]


def _row_squares(works: list[BlockWork]) -> list[Tensor]:
    """``||g_i||^2`` of every row of this step's gradients, ``[groups, d_out]`` per layer."""
    counts = [work.block.shape[0] * work.block.shape[1] for work in works]
    norms = multi_tensor.squared_row_norms([_gradient(work.parameters[0]) for work in works], counts)
    found = list(norms.split(counts))
    biased = [i for i, work in enumerate(works) if work.with_bias]
    if biased:
        of_biases = [counts[i] for i in biased]
        biases = multi_tensor.squared_row_norms([_gradient(works[i].parameters[1]) for i in biased], of_biases)
        torch._foreach_add_([found[i] for i in biased], list(biases.split(of_biases)))
    return [square.view(work.block.shape[:2]) for square, work in zip(found, works, strict=True)]


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
                ratio = torch.where(before != 0, self._slope(work) / before, 0.0)
                change = (_SAFETY / (1 - ratio).clamp(min=1e-9)).clamp(_SHRINK, _GROW)
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
