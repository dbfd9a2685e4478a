"""Steps of the default preset on NVIDIA GPUs, in a few launches whatever the number of layers (:mod:`lnb_kernels.fused_step`).

The stages are those of :mod:`lnb.step`, with the same results up to the precision of the products. One pass over the gradients
updates their averages and makes the directions; a small one scales rows and layers; a last one moves the parameters, those of
no layer by Adam's rule. Nothing of a parameter's size is made in a step but the directions, which are kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import LayerContext, StepContext
from lnb.damping import first_radius
from lnb.master import has_master, masters_of, remember
from lnb.momentum import ADAM_EPSILON, state_like
from lnb.routes.prepared import serves, settings_of
from lnb.routes.standing import Standing
from lnb.scratch import Scratch
from lnb.solvers.solve import Solution
from lnb.statistics.arenas import Arenas, constant
from lnb.statistics.running import bias_correction
from lnb.statistics.split_refresh import refresh_over
from lnb.verdict import Verdict
from lnb.weight_bound import usual_norm
from lnb_kernels import fused_step, multi_tensor
from lnb_kernels._checks import PLAIN
from lnb_kernels.multi_tensor.grouping import rate_beside
from lnb_kernels.refresh import AveragedGradient
from lnb_kernels.scaling import sum_dtype
from lnb_kernels.step_tables import StepSettings

_LAYER_NUMBERS = ("independent_square", "weight_norm", "growth", "radius", "coherence", "input_size")
_KEPT = ("momentum", "row_square", *_LAYER_NUMBERS, "step", "gradient_square")
_PARAMETERS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Fused:
    """The tensors that the steps of one set of parameters read and write, found once.

    Attributes:
        standing: what they were found for.
        steps: the counts of all parameters, ``[parameters]``: weights, biases of layers, others.
        places: where the counts lie: of each layer's weight, of its bias (or again its weight), and of the others.
        row_square, independent, weight_norm, growth, radius, coherence, input_size: of all layers, side by side.
        row_scales: of all rows of all layers; like the four sums of every layer, they are made anew by each step.
        directions: of each layer's weight, and of its bias.
        scales, products: of all layers, then of all others, ``[layers + others]``.
        settings: of the rules.
    """

    standing: Standing
    steps: Tensor
    places: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    row_square: Tensor
    independent: Tensor
    weight_norm: Tensor
    growth: Tensor
    radius: Tensor
    coherence: Tensor
    input_size: Tensor
    row_scales: Tensor
    sums: Tensor
    directions: list[Tensor]
    bias_directions: list[Tensor | None]
    scales: Tensor
    products: Tensor
    settings: StepSettings


def prepare_fused(context: StepContext, config: Config, arenas: Arenas, scratch: Scratch) -> Fused | None:
    """Find them, with zeros for layers that have made no step; None where the kernels do not serve this step."""
    device = context.parameters[0].device
    if not context.layers or not serves(config) or not fused_step.available(device):
        return None
    if not all(map(_is_served, context.parameters)) or not all(_is_ready(each) for each in context.layers):
        return None
    if any(len({_gradient(parameter).dtype for parameter in each.parameters}) > 1 for each in context.layers):
        return None  # one launch reads gradients of one dtype
    weights = [each.layer.weight for each in context.layers]
    biases = [each.parameters[1] if each.with_bias else None for each in context.layers]
    ordered = [*weights, *(bias for bias in biases if bias is not None), *context.others]
    for parameter in ordered:
        if "momentum" not in context.states[parameter]:
            context.states[parameter]["momentum"] = state_like(parameter)
    wide = torch.empty((), dtype=sum_dtype(device), device=device)
    states = [each.state for each in context.layers]
    rows = [each.layer.shape[:2] for each in context.layers]
    counted = arenas.select("step", [context.states[p] for p in ordered], [()] * len(ordered), wide.float())
    found = [arenas.select("row_square", states, rows, wide)]
    for key in _LAYER_NUMBERS:
        start = first_radius(sum(each.layer.is_first for each in context.layers)) if key == "radius" else 0.0
        found.append(arenas.select(key, states, [()] * len(states), wide, start=start))
    numbers = [selection.memory() for selection in (counted, *found)]
    if any(number is None for number in numbers):
        return None  # layers that are frozen for a while lie between: the general form takes such steps
    if context.others:
        shapes = [tuple(parameter.shape) for parameter in context.others]
        arenas.select("gradient_square", [context.states[p] for p in context.others], shapes, wide.float())
    place = {parameter: i for i, parameter in enumerate(ordered)}
    kept = scratch.take({weight: context.states[weight]["momentum"] for weight in weights}, config.direction_dtype)
    scales = torch.full((len(weights) + len(context.others),), config.others_lr, dtype=wide.dtype, device=device)
    return Fused(
        Standing.of(context, _KEPT),
        cast(Tensor, numbers[0]),
        (
            tuple(place[weight] for weight in weights),
            tuple(place[weight if bias is None else bias] for weight, bias in zip(weights, biases, strict=True)),
            tuple(place[parameter] for parameter in context.others),
        ),
        *cast("tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]", tuple(numbers[1:])),
        torch.zeros(sum(groups * count for groups, count in rows), device=device),
        wide.new_zeros(len(weights), 4),
        [kept[weight].view(each.layer.shape) for weight, each in zip(weights, context.layers, strict=True)],
        cast(
            "list[Tensor | None]",
            [None if b is None else torch.empty_like(context.states[b]["momentum"]) for b in biases],
        ),
        scales,
        torch.zeros_like(scales),
        settings_of(config),
    )


class FusedShare:
    """The stages of one step, as :func:`lnb.step.make_step` runs them."""

    products: Tensor

    def __init__(self, fused: Fused, context: StepContext, verdict: Verdict, config: Config, arenas: Arenas) -> None:
        self.fused, self.context, self.verdict, self.config, self.arenas = fused, context, verdict, config, arenas
        self.ok = verdict.on(fused.steps.device)
        self.solution = Solution([])
        self.weights = [each.layer.weight for each in context.layers]
        self.biases = [each.parameters[1] if each.with_bias else None for each in context.layers]
        self.gradients = [_gradient(weight).contiguous() for weight in self.weights]
        self.due = [i for i, layer in enumerate(context.layers) if layer.moments is not None]
        self.rows = [each.layer.shape[0] * each.layer.shape[1] for each in context.layers]
        self.runs = _runs([gradient.dtype for gradient in self.gradients])

    def direct(self) -> None:
        """Momentum, statistics, solve."""
        context, fused, settings = self.context, self.fused, self.fused.settings
        fused.steps.add_(1.0 if self.ok is None else self.ok)
        corrections = bias_correction(settings.momentum, fused.steps.clamp(min=1))
        shares = (settings.momentum if settings.nesterov else 1.0) / corrections
        of_weights, of_biases, of_others = (_chosen(shares, places) for places in fused.places)
        self.other_shares, self.take = of_others, 1 - settings.momentum if settings.nesterov else 0.0
        if self.due:
            due, averages = [context.layers[i] for i in self.due], self._averages(of_weights, of_biases)
            refresh_over(context.sharers, due, averages, self.verdict, self.arenas)
        states = [each.state for each in context.layers]
        blocks = [state["factor"].shape[1] for state in states]
        device = fused.steps.device
        wide = fused.scales.dtype
        self.partials = torch.empty(fused_step.partial_count(self.rows, blocks), dtype=wide, device=device)
        self.mixed_biases = torch.empty(sum(self.rows), dtype=wide, device=device)
        self.column_blocks, self.bias_shares = blocks, of_biases
        for run in self.runs:
            self._direct(run, of_weights)

    def _direct(self, run: slice, of_weights: Tensor) -> None:
        """The directions of some layers, whose gradients have one dtype."""
        fused, settings, layers = self.fused, self.fused.settings, self.context.layers[run]
        matrices, states = [each.layer.shape for each in layers], [each.state for each in layers]
        biases = self.biases[run]
        fused_step.direct_layers_(
            fused.directions[run],
            [self._momentum(weight).view(shape) for weight, shape in zip(self.weights[run], matrices, strict=True)],
            self.partials[self._partials_of(run)],
            self.mixed_biases[self._rows_of(run)],
            [gradient.view(shape) for gradient, shape in zip(self.gradients[run], matrices, strict=True)],
            [None if bias is None else _gradient(bias) for bias in biases],
            [None if bias is None else self._momentum(bias) for bias in biases],
            [state["factor"] for state in states],
            [state["factor_mean"] if layer.with_bias else None for layer, state in zip(layers, states, strict=True)],
            [state["output_factor"] for state in states],
            of_weights[run],
            self.bias_shares[run],
            settings.momentum,
            self.take,
            self.ok,
            self.config.products,
        )

    def _rows_of(self, run: slice) -> slice:
        """The slice of some layers' rows among those of all."""
        return slice(sum(self.rows[: run.start]), sum(self.rows[: run.stop]))

    def _partials_of(self, run: slice) -> slice:
        """The slice of their sums."""
        count = fused_step.partial_count
        rows, blocks = self.rows, self.column_blocks
        return slice(count(rows[: run.start], blocks[: run.start]), count(rows[: run.stop], blocks[: run.stop]))

    def gain(self) -> Tensor:
        """The sum that a region shared by all layers would bound."""
        products = self.fused.products[: len(self.weights)]
        return torch.where(products.isfinite(), products, 0.0).sum()

    def bound(self, total: Tensor | None) -> None:
        """Trust region."""
        self.shorter = torch.empty_like(self.fused.scales)
        norms = self._norms()
        for run in self.runs:
            self._finish(run, norms)
        del self.partials, self.mixed_biases
        self._stop_out_of_range()
        self.products = self.fused.products

    def _finish(self, run: slice, norms: Tensor | None) -> None:
        """How far some layers go, whose gradients have one dtype."""
        fused, rows, biases = self.fused, self._rows_of(run), self.biases[run]
        fused_step.finish_layers_(
            [None if bias is None else self._momentum(bias) for bias in biases],
            fused.bias_directions[run],
            fused.row_scales[rows],
            fused.row_square[rows],
            fused.independent[run],
            fused.growth[run],
            fused.radius[run],
            fused.coherence[run],
            fused.sums[run],
            fused.scales[run],
            fused.products[run],
            fused.weight_norm[run],
            self.shorter[run],
            self.partials[self._partials_of(run)],
            self.mixed_biases[rows],
            fused.input_size[run],
            [None if bias is None else _gradient(bias) for bias in biases],
            self.rows[run],
            self.column_blocks[run],
            fused.steps,
            fused.places[0][run],
            None if norms is None else norms[run],
            [usual_norm(each.layer) for each in self.context.layers[run]],
            [_rate(self.context.groups[weight]["lr"], fused.steps.device) for weight in self.weights[run]],
            self.bias_shares[run],
            fused.settings,
            self.ok,
        )

    def apply(self) -> None:
        """Move the parameters."""
        context, fused, config = self.context, self.fused, self.config
        groups = [group for group, _ in fused.standing.places]
        group_of = {
            parameter: k for k, (_, places) in enumerate(fused.standing.places) for parameter in self._at(places)
        }
        of_biases = [(bias, i) for i, bias in enumerate(self.biases) if bias is not None]
        masters = self._masters()
        corrections = bias_correction(config.b_others, _chosen(fused.steps, fused.places[2]).clamp(min=1))
        rows = fused.row_scales.split(self.rows)
        directions = zip(self.weights, fused.directions, strict=True)
        fused_step.apply_(
            fused_step.Weights(
                self.weights,
                [_ordered_as(weight, direction.view(weight.shape)) for weight, direction in directions],
                rows,
                list(range(len(self.weights))),
                [group_of[weight] for weight in self.weights],
                [masters.get(weight) for weight in self.weights],
            ),
            fused_step.Biases(
                [bias for bias, _ in of_biases],
                [direction.view(bias.shape) for bias, direction in self._bias_directions()],
                [i for _, i in of_biases],
                [group_of[bias] for bias, _ in of_biases],
                [masters.get(bias) for bias, _ in of_biases],
            ),
            fused_step.Others(
                context.others,
                [_gradient(parameter) for parameter in context.others],
                [self._momentum(parameter) for parameter in context.others],
                [context.states[parameter]["gradient_square"] for parameter in context.others],
                self.other_shares,
                corrections,
                list(range(len(self.weights), len(fused.scales))),
                [group_of[parameter] for parameter in context.others],
                [masters.get(parameter) for parameter in context.others],
            ),
            fused.scales,
            [group["lr"] for group in groups],
            [group["weight_decay"] for group in groups],
            fused_step.AdamRule(config.momentum, self.take, config.b_others, ADAM_EPSILON),
            self.shorter if self.due else None,
            self.ok,
        )
        remember(list(masters))

    def _at(self, places: list[int]) -> list[nn.Parameter]:
        return [self.fused.standing.parameters[i] for i in places]

    def _bias_directions(self) -> list[tuple[nn.Parameter, Tensor]]:
        pairs = zip(self.biases, self.fused.bias_directions, strict=True)
        return [(bias, direction) for bias, direction in pairs if bias is not None and direction is not None]

    def _masters(self) -> dict[nn.Parameter, Tensor]:
        members = [parameter for parameter in self.context.parameters if has_master(parameter, self.config)]
        return dict(zip(members, masters_of(members, self.context.states), strict=True))

    def _norms(self) -> Tensor | None:
        """The norms of the weights of layers that are refreshed, ``[layers]``, and -1 of others; None where there are none."""
        if not self.due:
            return None
        weights = [self.weights[i] for i in self.due]
        norms = multi_tensor.dot(weights, weights).sqrt_()
        if len(self.due) == len(self.weights):
            return norms
        return torch.full_like(self.fused.weight_norm, -1.0).index_copy_(
            0, constant(tuple(self.due), norms.device), norms
        )

    def _stop_out_of_range(self) -> None:
        """Switch off layers whose inputs are too large to be squared: they have no metric, and no product."""
        flags = [self.context.layers[i].squarable for i in self.due]
        found = [flag for flag in flags if flag is not None]
        if not found:
            return
        places = tuple(i for i, flag in zip(self.due, flags, strict=True) if flag is not None)
        squarable = torch.stack(found)
        if len(places) < len(self.weights):
            everywhere = torch.ones(len(self.weights), dtype=torch.bool, device=squarable.device)
            squarable = everywhere.index_copy_(0, constant(places, squarable.device), squarable)
        layers = len(self.weights)
        self.fused.products[:layers].masked_fill_(~squarable, math.nan)
        self.fused.scales[:layers].mul_(squarable)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        found: Tensor = self.context.states[parameter]["momentum"]
        return found

    def _averages(self, of_weights: Tensor, of_biases: Tensor) -> dict[nn.Parameter, Tensor | AveragedGradient]:
        """``g~`` of the layers that are refreshed: their averages are updated later, with their directions."""
        decay = self.fused.settings.momentum
        found: dict[nn.Parameter, Tensor | AveragedGradient] = {}
        for i in self.due:
            weight, bias = self.weights[i], self.biases[i]
            parts = [(weight, self.gradients[i], of_weights)]
            parts += [] if bias is None else [(bias, _gradient(bias), of_biases)]
            for parameter, gradient, shares in parts:
                found[parameter] = AveragedGradient(gradient, self._momentum(parameter), shares[i], decay, self.take)
        return found


def _runs(kinds: Sequence[torch.dtype]) -> list[slice]:
    """Runs of neighbours of one dtype: a launch serves gradients of one."""
    borders = [0, *(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]), len(kinds)]
    return [slice(begin, end) for begin, end in itertools.pairwise(borders)]


def _chosen(values: Tensor, places: Sequence[int]) -> Tensor:
    """The values at these places: a view where they lie side by side."""
    if not places or tuple(places) == tuple(range(places[0], places[0] + len(places))):
        begin = places[0] if places else 0
        return values[begin : begin + len(places)]
    return values[constant(tuple(places), values.device)]


def _rate(lr: float | Tensor, device: torch.device) -> float | Tensor:
    """``lr``, as the kernels take it: a number, or a tensor on their device."""
    number, tensor = rate_beside((0.0, lr) if isinstance(lr, Tensor) else (lr, None), device)
    return number if tensor is None else tensor


def _ordered_as(weight: Tensor, direction: Tensor) -> Tensor:
    """``direction`` in the memory order of ``weight``: itself, but where images have their channels last."""
    return direction if weight.is_contiguous() else direction.contiguous(memory_format=torch.channels_last)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _is_served(parameter: nn.Parameter) -> bool:
    gradient = _gradient(parameter)
    dense = parameter.is_contiguous() or (
        parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    )
    return (
        dense
        and parameter.dtype in _PARAMETERS
        and gradient.dtype in _PARAMETERS
        and type(gradient) in PLAIN
        and type(parameter) in PLAIN
        and parameter.numel() > 0
    )


def _is_ready(layer: LayerContext) -> bool:
    """Whether the layer has made no step, or has all that later steps need."""
    state = layer.state
    if layer.moments is None and ("factor" not in state or layer.with_bias != ("factor_mean" in state)):
        return False  # or a bias was frozen or thawed since the last refresh
    if not state or set(state) <= {"momentum", "step"}:
        return layer.moments is not None
    return all(key in state for key in ("row_square", *_LAYER_NUMBERS))
