"""Damping: what makes steps shorter than the trust region allows.

A trust region bounds the length of a step. Whether so long a step pays off shows in the gradients that follow it. Two rules read
that, each from numbers that a step has anyway, without looking at the loss and without waiting for a device.

**Agreement**, for noisy gradients. With ``g~_i`` the average of the gradients of row ``i`` of a layer, and ``v_i`` the average of
their squared norms, the row's step is multiplied by

    ``a = min(1, ||g~_i|| / sqrt(v_i))``

``a`` is 1 where all gradients are the same; where they are independent noise, it is a quarter with the usual momentum, and less
where they oppose each other, as they do after steps that are too long. ``v_i`` is at least this step's ``||g_i||^2``:
otherwise a gradient that is far longer than those before it, and so most of the average, would look like many gradients that
agree, and the rarest samples would get the longest steps. It is the ratio of Adam (Kingma and Ba, 2015), taken over a neuron's
row instead of one entry.

Weight and bias of a row count together, but for layers that see data (those of which the size of the inputs is known,
:mod:`lnb.statistics.input_sizes`). Data have units of their own: in smaller ones, the gradients of the weights are as much
smaller beside that of the bias, and whether a row's gradients agree would be asked of its bias alone. There, the square of the
bias's gradient counts :data:`lnb_kernels.step_tables.DATA_BIAS`, which is nothing, and all where the data are zero.

Each layer also has a radius, the share of its region that it uses (:func:`radii`). It shrinks while the layer's gradients oppose
each other, so that a step length that was too long is not tried again at once, and grows otherwise. It starts at one over the
square root of the number of layers (:func:`first_radius`), and grows in the first :data:`OPENING` steps as far as gradients
agree more than noise would. That is a warm-up, which every deep network needs: at first each layer would go to its bounds as if
the others stood still, and in plain networks these moves compound. Where they do, the gradient of a step has nothing to do
with that of the step before, and the radius stays; in residual networks and shallow ones gradients agree from the second step
on, and it is all of the region soon.

It shrinks to a fifth at most. The gradients of a layer tell that the network's steps are too long, not whose steps are: if one
layer goes back and forth, the gradients of all layers after it do. With no end to the shrinking, those come to stand still, and
the first goes on.

The radius also shrinks, slowly and down to the same fifth, while the layer's gradients are noise: while ``||g~||^2`` is what
independent gradients would make it, on average over about 50 steps. This average, relative to that, is the layer's
**coherence**. Where steps are too long for the curvature, gradients oppose each other and coherence is about a third. Where
steps are short, gradients repeat each other, and it is above one. At one there is no sign of either: the direction of a step
is chance, and steps add a random walk to the weights, the shorter the better. Pflug (1990) ends a constant step length by this
test, with a sign in place of a band.

Below the band steps are near what the curvature bears. Networks that train well stay there, at a coherence of about a half:
radii that single steps shrank grow again by up to a twentieth a step around it, and not nearer to the band, where gradients of
heavy-tailed data would let them, nor towards a third, where all that would do is to go back and forth more. Layers that see data
do not grow there at all: in plain networks, and residual ones without normalisation, the data's noise keeps their coherence
near a half when those of all other layers are at a third and their radii at the floor, and the one layer that grew then would
spoil what they reach.

All this reads raw gradients. Where these agree for the sake of a few directions, as in a last layer whose outputs are all too
large, and the metric is small in others, steps lie in the others, and may go **back and forth** there unnoticed. The weights'
norm, which refreshes measure anyway, shows it: had steps of relative lengths ``r_s`` since the last refresh been at right angles
to each other and the weights, the norm's square would be ``1 + sum r_s^2`` times as large (:mod:`lnb.weight_bound`), and more,
as each average of gradients has much in common with the last, for which noise suffices (:func:`turning`). Where it has changed
by less than a fifth of what noise does, either way, and steps were so long that their squares tell at all, the radius goes to
its floor at once, and coherence starts anew, so that the radius does not grow back before gradients have been heard. (A norm
that does not change at all is held by somebody else: a model may scale its weights to a sphere after every step.)

**Gain**, for gradients without noise: Levenberg and Marquardt's rule, per layer. Along the last step ``D`` of a layer, the
slope of the loss was ``<g, D>`` and is now ``<g', D>``; were it a parabola, the best length would have been
``1 / (1 - <g', D> / <g, D>)`` times as long. The fraction ``f`` of the direction ``h`` that the layer may go is multiplied by
nine tenths of that, between 1/4 and 1.3, and is at most 1: the Newton step of a layer whose loss is ``||y - y*||^2 / 2``. The
slope now includes what the other layers' steps did, so layers that correct one error together share it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import LayerContext
from lnb.momentum import state_like
from lnb.sharded.columns import add_parts
from lnb.statistics.arenas import Arenas, constant, owners_of, sums_of
from lnb.statistics.input_sizes import select_input_sizes
from lnb.statistics.running import bias_correction
from lnb.verdict import Verdict
from lnb_kernels import multi_tensor
from lnb_kernels.fused_step import reference
from lnb_kernels.step_tables import RadiusRule

_FIRST_FRACTION = 0.3
_SAFETY = 0.9
_SHRINK, _GROW = 0.25, 1.3
OPPOSED = 0.5
RADIUS_SHRINK, RADIUS_GROW, FLOOR, LEAST_RADIUS = 0.8, 1.1, 0.2, 1e-4
COHERENCE_DECAY, QUIET, LOUD = 0.98, 0.8, 1.2
NOISE_SHRINK, RECOVER = 0.98, 1.05
OPENING = 20
TURNED, TELLING = 0.2, 0.02


@dataclass(frozen=True)
class Agreement:
    """The numbers by which the agreement of this step's gradients with earlier ones is judged, for the layers of one device.

    Attributes:
        row_squares: ``v``, the mean square of each row's gradients, at least this step's, ``[groups, rows]`` of every layer.
        fresh: ``||g||^2`` of every layer's gradient of this step, ``[layers]``.
        counts: the steps that every layer has made, with this one, ``[layers]``.
        bias_weights: what the squares of every layer's bias count in all this, ``[layers]``; None for 1.
        sees_data: which layers see data, as far as the size of their inputs is known, ``[layers]``; None for none.
    """

    row_squares: list[Tensor]
    fresh: Tensor
    counts: Tensor
    bias_weights: Tensor | None
    sees_data: Tensor | None

    def counted(self, layers: list[int]) -> Tensor | None:
        """The ``bias_weights`` of these layers, ``[layers]``."""
        every = self.bias_weights
        if every is None or layers == list(range(len(every))):
            return every
        return every[constant(tuple(layers), every.device, torch.int64)]


def observe_agreement(contexts: list[LayerContext], verdict: Verdict, config: Config, arenas: Arenas) -> Agreement:
    """Update the numbers by which agreement is judged with this step's gradients, after the averages of the gradients and
    after refreshes, which know the sizes of inputs.

    State of a layer's weight: ``row_square`` ``[groups, rows]``, the average of ``||g_i||^2`` of decay ``b_rows``, weight and
    bias together.
    """
    states = [context.state for context in contexts]
    shapes = [context.layer.shape[:2] for context in contexts]
    sizes = tuple(groups * rows for groups, rows in shapes)
    input_sizes = select_input_sizes(contexts, arenas)
    known = None if input_sizes is None else input_sizes.read()
    counted = None if known is None else reference.bias_weights(known)
    squares = _row_squares(contexts, sizes, counted)
    counts = torch.stack([state["step"] for state in states]).clamp(min=1)
    owners = owners_of(sizes, squares.device)

    def start() -> Tensor:
        """The average that it would be had all gradients before been of this size. A step that is not made leaves no NaN."""
        past = bias_correction(config.b_rows, counts - 1).to(squares.dtype)
        return (squares * past[owners]).nan_to_num(0.0, 0.0, 0.0)

    kept = arenas.select("row_square", states, shapes, squares, start=start)
    ok = verdict.on(squares.device)
    kept.write(torch.lerp(kept.read(), squares, 1 - config.b_rows), ok)
    corrections = bias_correction(config.b_rows, counts).to(squares.dtype)
    mean_squares = torch.maximum(kept.read() / corrections[owners], squares)
    rows = [part.view(shape) for part, shape in zip(mean_squares.split(sizes), shapes, strict=True)]
    return Agreement(rows, sums_of(squares, sizes), counts, counted, None if known is None else known > 0)


def expected_squares(
    contexts: list[LayerContext], agreement: Agreement, verdict: Verdict, config: Config, arenas: Arenas
) -> Tensor:
    """``||g~||^2`` of every layer, were its gradients independent, ``[layers]``; updates what that is made of.

    State of a layer's weight: ``independent_square`` ``[]``, the sum of ``||g_s||^2`` times the squared weight of ``g_s`` in
    ``m``.

    ``g~`` weighs this step's gradient by ``share (1 - b) + take`` and those before by ``share`` times their weight in ``m``,
    where ``share = b / (1 - b^t)`` and ``take = 1 - b`` with the look-ahead, else ``1 / (1 - b^t)`` and 0.
    """
    b = config.momentum
    fresh = agreement.fresh
    states = [context.state for context in contexts]
    independent = arenas.select("independent_square", states, [()] * len(states), fresh)
    past = independent.read() * b**2
    independent.write(past + (1 - b) ** 2 * fresh, verdict.on(fresh.device))
    share = ((b if config.nesterov else 1.0) / bias_correction(b, agreement.counts)).to(fresh.dtype)
    take = 1 - b if config.nesterov else 0.0
    return share.square() * past + (share * (1 - b) + take).square() * fresh


def first_radius(layers: int) -> float:
    """The radius with which each of ``layers`` layers starts: all their moves, were they at right angles to each other, are
    together as long as the whole region of one."""
    return 1 / math.sqrt(max(1, layers))


def noise_band(config: Config) -> tuple[float, float]:
    """The coherence between which gradients are noise. Without momentum there is no average to tell it by: the band is empty."""
    return (QUIET, LOUD) if config.momentum > 0 else (0.0, 0.0)


def radius_rule(config: Config) -> RadiusRule:
    """The numbers by which radii change (:func:`radii`)."""
    quiet, loud = noise_band(config)
    return RadiusRule(
        opposed=OPPOSED**2,
        shrink=RADIUS_SHRINK,
        grow=RADIUS_GROW,
        least=LEAST_RADIUS,
        b_coherence=COHERENCE_DECAY,
        quiet=quiet,
        loud=loud,
        calm=NOISE_SHRINK,
        floor=FLOOR,
        recover=RECOVER,
        opening=OPENING,
        turning=turning(config),
        telling=TELLING,
        interval=config.refresh_every,
    )


def turning(config: Config) -> float:
    """How little the square of a norm changes where steps go back and forth, over ``sum r_s^2`` since it was measured last.

    It is the share :data:`TURNED` of ``1 + 2 sum_k (1 - k / n) b^k``, by which the sum of ``n`` averages of independent gradients
    is longer, squared, than that of ``n`` steps at right angles; ``n`` is the interval of refreshes.
    """
    b, n = config.momentum, config.refresh_every
    return TURNED * ((1 + b) / (1 - b) - 2 * b * (1 - b**n) / (n * (1 - b) ** 2))


def turned_back(squares: Tensor, growth: Tensor, config: Config) -> Tensor:
    """Whether the steps of layers went back and forth since their weights were measured last, ``[layers]``.

    Args:
        squares: of the norm measured now over that measured last.
        growth: half the sum of the squares of their relative lengths.
        config: the settings.
    """
    return reference.turned_back(squares, growth, radius_rule(config))


def radii(
    contexts: list[LayerContext],
    averages: Tensor,
    expected: Tensor,
    agreement: Agreement,
    verdict: Verdict,
    config: Config,
    arenas: Arenas,
    turned: Tensor | None = None,
) -> Tensor:
    """Update the radius of every layer, the share of its region that it uses, and return them, ``[layers]``, in (0, 1].

    It shrinks by a fifth, down to :data:`FLOOR`, while the layer's average is shorter than half of what independent gradients
    would make it, which only gradients that point against each other do. Else coherence decides. In the first
    :data:`OPENING` steps the radius grows, by a tenth where coherence is above the band of noise, not at all below it, and
    between in proportion. After them, in the band of noise the radius shrinks by 2 % a step, down to
    :data:`FLOOR`; above, it grows by a tenth where coherence is two, and by less between. Below, where steps are near what the
    curvature bears, it grows by all of :data:`RECOVER` from a coherence of 0.4 to 0.5, from 0.35 and to 0.6 in proportion, and
    not at all elsewhere, nor where the layer sees data. Before all this, it goes to :data:`FLOOR` where steps went back and
    forth. A radius that a rising loss made smaller than :data:`FLOOR` (:mod:`lnb.loss_rise`) stays, or grows again.

    State of a layer's weight: ``radius``, which starts at :func:`first_radius`, and ``coherence``, the average of decay
    :data:`COHERENCE_DECAY`, from zero, of ``||g~||^2`` over what is expected of independent gradients, cut at four.

    Args:
        contexts: the layers.
        averages: ``||g~||^2`` of each, ``[layers]``.
        expected: the same, of independent gradients.
        agreement: of the layers.
        verdict: whether state may change.
        config: the settings.
        arenas: where the state lives.
        turned: whether the layer's steps were found to go back and forth, ``[layers]``. It counts after the first
            ``refresh_every + 1`` steps, of which some measure one after the other (:mod:`lnb.statistics.schedule`).
    """
    counts, sees_data = agreement.counts, agreement.sees_data
    states = [context.state for context in contexts]
    start = first_radius(sum(context.layer.is_first for context in contexts))
    rule = radius_rule(config)
    kept = arenas.select("radius", states, [()] * len(contexts), averages, start=start)
    coherences = arenas.select("coherence", states, [()] * len(contexts), averages)
    former, coherence = kept.read(), coherences.read()
    if turned is not None:
        turned = turned & (counts > rule.interval + 1)
        former = torch.where(turned, former.clamp(max=rule.floor), former)
        coherence = coherence * ~turned
    steps = counts.to(averages.dtype)
    coherence, radius = reference.next_radius(former, coherence, averages, expected, steps, sees_data, rule)
    ok = verdict.on(averages.device)
    coherences.write(coherence, ok)
    kept.write(radius, ok)
    return kept.read()


def _row_squares(contexts: list[LayerContext], counts: tuple[int, ...], bias_weights: Tensor | None) -> Tensor:
    """``||g_i||^2`` of every row of this step's gradients, ``[rows of all layers]``, limited to the largest number."""
    norms = multi_tensor.squared_row_norms([_gradient(context.parameters[0]) for context in contexts], list(counts))
    spans = list(norms.split(counts))
    cut = [(i, columns) for i, context in enumerate(contexts) if (columns := context.layer.columns) is not None]
    if cut:
        for (i, _), total in zip(cut, add_parts([(columns, spans[i]) for i, columns in cut]), strict=True):
            spans[i].copy_(total)
    biased = [i for i, context in enumerate(contexts) if context.with_bias]
    if biased:
        squares = torch.cat([_gradient(contexts[i].parameters[1]).flatten() for i in biased]).to(norms.dtype).square()
        if bias_weights is not None:
            of_layers = bias_weights.to(norms.dtype)
            rows = tuple(counts[i] for i in biased)
            places = constant(tuple(biased), norms.device, torch.int64)
            squares = squares * of_layers[places][owners_of(rows, norms.device)]
        torch._foreach_add_([spans[i] for i in biased], list(squares.split([counts[i] for i in biased])))
    most = torch.finfo(norms.dtype).max ** 0.75  # an infinite mean square would never end
    return norms.clamp(max=most)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class Gain:
    """The fractions of this step's directions that the layers go, from what their last steps gained.

    State of a layer's weight: ``fraction`` ``f``, ``last_slope`` ``<g, D>``, and of each parameter of the layer
    ``last_step``, ``D``.
    """

    def __init__(self, contexts: list[LayerContext], verdict: Verdict, arenas: Arenas) -> None:
        self._contexts = contexts
        self._states = [context.state for context in contexts]
        self._shapes: list[tuple[int, ...]] = [()] * len(contexts)
        self._ok = verdict.on(contexts[0].layer.weight.device)
        self._verdict = verdict
        self._arenas = arenas

    def fractions(self, like: Tensor) -> Tensor:
        """``f`` of every layer, ``[layers]``, dtype and device as ``like``."""
        fraction = self._arenas.select("fraction", self._states, self._shapes, like, start=_FIRST_FRACTION)
        before = self._arenas.select("last_slope", self._states, self._shapes, like).read()
        for context in self._contexts:
            for parameter in context.parameters:
                if "last_step" not in context.states[parameter]:
                    context.states[parameter]["last_step"] = state_like(parameter)
        change = (_SAFETY / (1 - self._slopes() / before).clamp(min=1e-9)).clamp(_SHRINK, _GROW)
        change = torch.where(before != 0, change, 1.0)  # no step before tells nothing
        fraction.write((fraction.read() * change).clamp(max=1), self._ok)
        return fraction.read()

    def remember(self, directions: list[list[Tensor]], scales: Tensor) -> None:
        """Note the steps ``-scale direction`` that the layers' parameters are about to make.

        Args:
            directions: of each layer, one tensor per parameter.
            scales: ``[layers]``.
        """
        for context, parts, scale in zip(self._contexts, directions, scales.unbind(), strict=True):
            for parameter, part in zip(context.parameters, parts, strict=True):
                moved = (part * -scale.to(part.dtype)).nan_to_num(0.0, 0.0, 0.0).view_as(parameter)
                self._verdict.commit(context.states[parameter]["last_step"], moved)
        slopes = self._slopes()
        self._arenas.select("last_slope", self._states, self._shapes, slopes).write(slopes, self._ok)

    def _slopes(self) -> Tensor:
        """``<g, D>`` of this step's gradients and the steps remembered, ``[layers]``."""
        parameters = [(i, parameter) for i, context in enumerate(self._contexts) for parameter in context.parameters]
        steps = [self._contexts[i].states[parameter]["last_step"] for i, parameter in parameters]
        return multi_tensor.dot([_gradient(p) for _, p in parameters], steps, [i for i, _ in parameters])
