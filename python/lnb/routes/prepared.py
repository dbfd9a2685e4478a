"""Ordinary steps of the default preset on the CPU, from tables made once (:mod:`lnb_kernels.step_tables`).

The stages are those of :mod:`lnb.step`, with the same results. The tables stand as long as the same parameters move under the
same settings and all state lies where it lay; otherwise they are made anew, or the stages take their general form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from lnb.apply import joined_decay
from lnb.config import Config
from lnb.context import LayerContext, StepContext
from lnb.damping import radius_rule
from lnb.layers.capture import statistics_dtype
from lnb.master import has_master, masters_of, remember
from lnb.momentum import ADAM_EPSILON
from lnb.routes.outputs import Outputs
from lnb.routes.standing import Standing
from lnb.scratch import Scratch
from lnb.solvers.solve import Solution
from lnb.statistics.arenas import Arenas, State
from lnb.statistics.prepared_refresh import Refresh, refresh_prepared
from lnb.statistics.split_refresh import refresh_over
from lnb.trust_regions.two_sided import TwoSided
from lnb.verdict import Verdict
from lnb.weight_bound import LARGEST_CHANGE, usual_norm
from lnb_kernels.scaling import largest_squarable
from lnb_kernels.step_tables import StepFactor, StepLayer, StepSettings, StepTables

_NUMBERS = ("independent_square", "weight_norm", "growth", "radius", "coherence", "input_size")
_KEPT = ("momentum", "master", "row_square", *_NUMBERS, "step", "gradient_square")


@dataclass
class Prepared:
    """The tables of one set of parameters, and what they were made for."""

    tables: StepTables
    standing: Standing
    averages: dict[nn.Parameter, Tensor]
    outputs: Outputs
    factors: list[StepFactor]
    addresses: list[int]
    mastered: list[nn.Parameter]
    refreshes: dict[tuple[int, ...], Refresh] = field(default_factory=dict)

    def fits(self, context: StepContext) -> bool:
        """Whether the tables serve this step."""
        if not self.standing.holds(context) or not all(map(_is_usual, context.layers)):
            return False
        if not self._are_known(context.layers):
            self.factors = _factors(context.layers)
            self.addresses = _addresses(self.factors)
            if not _solves(context.layers, self.factors):
                return False
        return self.tables.holds([cast(Tensor, parameter.grad) for parameter in self.standing.parameters])

    def _are_known(self, contexts: list[LayerContext]) -> bool:
        """Whether the states hold the factors that were looked at last, where they lay: the usual case."""
        for context, factor in zip(contexts, self.factors, strict=True):
            state = context.state
            same = state["factor"] is factor.inverse and state["output_factor"] is factor.root
            if not same or state.get("factor_mean") is not factor.mean:
                return False
        return _addresses(self.factors) == self.addresses


class PreparedShare:
    """The stages of one step, as :func:`lnb.step.make_step` runs them."""

    products: Tensor

    def __init__(self, prepared: Prepared, context: StepContext, verdict: Verdict, arenas: Arenas) -> None:
        self.prepared, self.context, self.verdict, self.arenas = prepared, context, verdict, arenas
        self.tables = prepared.tables
        self.solution = Solution([])
        self.shorter: dict[nn.Parameter, float] = {}
        self.due = [each for each in context.layers if each.moments is not None]

    def direct(self) -> None:
        """Momentum, statistics, solve."""
        prepared = self.prepared
        outputs, self.memory = prepared.outputs.for_a_step()
        self.tables.average([cast(Tensor, p.grad) for p in prepared.standing.parameters], outputs)
        self.tables.observe()
        if self.due:
            refresh_over(self.context.sharers, self.due, prepared.averages, self.verdict, self.arenas, self._refreshed)
        # A refresh may have made factors that are no longer those that were looked at.
        self.tables.direct(_factors(self.context.layers) if self.due else prepared.factors)

    def _refreshed(self, contexts: list[LayerContext]) -> list[LayerContext]:
        """Refresh the layers that the tables serve; return the others."""
        chosen = set(contexts)
        places = {context: i for i, context in enumerate(self.context.layers) if context in chosen}
        return refresh_prepared(self.tables, places, self.arenas, self.prepared.refreshes)

    def gain(self) -> Tensor:
        """The sum that a region shared by all layers would bound."""
        products = torch.tensor(self.tables.sums()[::4], dtype=torch.float64)
        return torch.where(products.isfinite(), products, 0.0).sum()

    def bound(self, total: Tensor | None) -> None:
        """Trust region."""
        layers = self.context.layers
        of_groups = {id(group): float(group["lr"]) for group, _ in self.prepared.standing.places}
        rates = [of_groups[group] for group in self.prepared.standing.groups_of_layers]
        due = [i for i, each in enumerate(layers) if each.moments is not None]  # all have been measured before
        if due:
            factors = self.tables.measure(due, [rates[i] for i in due])
            self.shorter = {layers[i].layer.weight: factor for i, factor in zip(due, factors, strict=True)}
        self.products = torch.tensor(self.tables.bound(rates), dtype=torch.float64)

    def apply(self) -> None:
        """Move the parameters."""
        parameters = self.prepared.standing.parameters
        mastered = self.prepared.mastered
        masters_of(mastered, self.context.states)
        for group, places in self.prepared.standing.places:
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            decays = [decay] * len(places)
            if self.shorter:
                factors = [self.shorter.get(parameters[i]) for i in places]
                decays = [decay if f is None else joined_decay(decay, f, lr) for f in factors]
            self.tables.apply(places, lr, decays)
        remember(mastered)


def prepare(context: StepContext, config: Config, arenas: Arenas, scratch: Scratch) -> Prepared | None:
    """Tables for ``context``, whose layers all have made a step; None where they do not serve it."""
    if not serves(config) or not all(_ready(x.config, x.state) and _is_usual(x) for x in context.layers):
        return None
    if any("gradient_square" not in context.states[p] for p in context.others) or not context.layers:
        return None
    parameters = list(context.parameters)
    momentum = [context.states[parameter]["momentum"] for parameter in parameters]
    squares = [context.states[p]["gradient_square"] for p in context.others]
    gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
    mastered = [parameter for parameter in parameters if has_master(parameter, config)]
    if any("master" not in context.states[parameter] for parameter in mastered):
        return None
    masters = [context.states[p]["master"] if has_master(p, config) else None for p in parameters]
    kept = [*momentum, *squares]
    wide = [statistics_dtype(parameter.dtype) for parameter in (*parameters, *context.others)]
    if [tensor.dtype for tensor in kept] != wide or any(len(set(_wide_of(x))) > 1 for x in context.layers):
        return None
    factors = _factors(context.layers)
    read = [*parameters, *kept, *gradients, *(master for master in masters if master is not None)]
    if not StepTables.serves(read) or not _solves(context.layers, factors):
        return None
    states = [context.states[parameter] for parameter in parameters]
    of_layers = [each.state for each in context.layers]
    place = {parameter: i for i, parameter in enumerate(parameters)}
    layers = []
    for each, state in zip(context.layers, of_layers, strict=True):
        bias = place[each.parameters[1]] if each.with_bias else None
        weight = each.layer.weight
        layers.append(StepLayer(place[weight], bias, each.layer.d_in, state["row_square"], usual_norm(each.layer)))
    like = torch.empty((), dtype=torch.float64)
    found = [arenas.select(key, of_layers, [()] * len(layers), like) for key in _NUMBERS]
    counted = arenas.select("step", states, [()] * len(states), like.float())
    numbers = [chosen.memory() for chosen in (counted, *found)]
    if any(memory is None for memory in numbers):
        return None
    claimed = {p: momentum[place[p]] for each in context.layers for p in each.parameters}
    averages = scratch.take(claimed)
    known = cast("list[Tensor]", numbers)
    tables = StepTables(parameters, momentum, masters, layers, squares, known, settings_of(config))
    outputs = Outputs(parameters, averages)
    return Prepared(tables, Standing.of(context, _KEPT), averages, outputs, factors, _addresses(factors), mastered)


def _wide_of(context: LayerContext) -> list[torch.dtype]:
    """The dtypes of the averages of a layer's parameters."""
    return [statistics_dtype(parameter.dtype) for parameter in context.parameters]


def _factors(contexts: list[LayerContext]) -> list[StepFactor]:
    """What the states hold for each layer."""
    return [
        StepFactor(s["factor"], s.get("factor_mean"), s["output_factor"])
        for s in (context.state for context in contexts)
    ]


def _addresses(factors: list[StepFactor]) -> list[int]:
    """The addresses of these tensors."""
    return [tensor.data_ptr() for factor in factors for tensor in factor.tensors]


def _solves(contexts: list[LayerContext], factors: list[StepFactor]) -> bool:
    """Whether the tables serve these factors of ``contexts``."""
    if any(context.with_bias != (factor.mean is not None) for context, factor in zip(contexts, factors, strict=True)):
        return False  # a bias was frozen or thawed since the last refresh
    return StepTables.solves(factors, [_wide_of(context)[0] for context in contexts])


def serves(config: Config) -> bool:
    """Whether the settings are those for which a step has tables: the default's rules."""
    return (
        type(config.region) is TwoSided  # not one that has other scales
        and config.damping == "agreement"
        and config.max_relative_change is not None
        and config.others == "adamw"
    )


def _ready(config: Config, state: State) -> bool:
    needed = ("factor", "output_factor", "row_square", *_NUMBERS)
    return config.factored and config.region.two_sided and all(key in state for key in needed)


def _is_usual(context: LayerContext) -> bool:
    """Whether this step's statistics are in range, and in the blocks of the factor."""
    moments, factor = context.moments, context.state["factor"]
    return context.squarable is None and (moments is None or moments.shape[:2] == factor.shape[:2])


def settings_of(config: Config) -> StepSettings:
    """What the rules of a step need of the optimizer's settings."""
    return StepSettings(
        momentum=config.momentum,
        nesterov=config.nesterov,
        b_rows=config.b_rows,
        change=cast(float, config.max_relative_change),
        largest=LARGEST_CHANGE,
        radius=radius_rule(config),
        b_others=config.b_others,
        epsilon=ADAM_EPSILON,
        others_scale=config.others_lr,
        most=largest_squarable(torch.float32),
    )
