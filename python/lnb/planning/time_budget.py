"""A budget of time: cheaper statistics and solutions for the layers where they save most, until the step is fast enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lnb.layers.capture import Samples
from lnb.layers.claimed import Layer
from lnb.planning.choice import (
    SMALLEST_BLOCK,
    Change,
    Choice,
    Choices,
    Option,
    as_arrow,
    bytes_kept,
    descend,
    halve_blocks,
)
from lnb.planning.cost import Cost, layer_cost
from lnb.planning.rates import Rates
from lnb.planning.solver_choice import choose_solver
from lnb.solvers import solver_named

LONGEST_REFRESH = 100
"""Steps: no budget makes statistics older than this."""
SAMPLES_PER_INPUT = 16
"""How many samples per input of the layer are read at the least."""
STEADY_SHARE = 0.7
"""The share of the time budget that solutions and trust regions may take; the rest pays for statistics."""


@dataclass(frozen=True)
class Limits:
    """Budgets of all layers together.

    Attributes:
        overhead: time of statistics, solutions and trust regions, as a fraction of that of forward and backward passes.
        state_bytes: state of the optimizer, and inputs that layers keep.
        other_bytes: what parameters of no layer take of that.
        dual: whether the ridge, positive in every parameter group, allows the dual solver.
    """

    overhead: float | None = None
    state_bytes: int | None = None
    other_bytes: int = 0
    dual: bool = True


class TimeBudget:
    """Chooses solvers, and then cheaper settings until the limits are met or none is left.

    First, blocks are cut until what every step does takes at most :data:`STEADY_SHARE` of the budget. Then statistics are
    taken from fewer samples, where there are so many that the estimate stays good; then they are taken less often. Last, layers
    whose solver is ``"auto"`` get the arrow preconditioner alone. Each change is made to the layer where it saves most time.
    """

    def __init__(
        self,
        choices: Choices,
        fixed: Choices,
        samples: Mapping[Layer, Samples],
        rates: Mapping[torch.device, Rates],
        limits: Limits,
    ) -> None:
        """Take the layers and limits. Args:
        choices: the layers to decide on, as they were asked for.
        fixed: layers decided on earlier, whose cost counts too.
        samples: of one step, of all of these.
        rates: of every device.
        limits: the budgets.
        """
        self._asked, self._fixed, self._samples, self._rates, self._limits = (
            dict(choices),
            fixed,
            samples,
            rates,
            limits,
        )
        self._solved: Choices = dict(choices)
        self._kept = sum(self._bytes(layer, choice) for layer, choice in {**fixed, **choices}.items())
        for layer, choice in choices.items():
            self._take(layer, self._option(layer, choice, 0.0))

    def choose(self) -> Choices:
        """The settings of the layers to decide on."""
        budget = self._limits.overhead
        if budget is not None:
            smaller = halve_blocks(SMALLEST_BLOCK // 2, "max_overhead")
            self._cut([smaller], lambda cost: cost.solve + cost.region, STEADY_SHARE * budget)
            self._cut([self._sample_less], lambda cost: cost.overhead, budget)
            self._cut([_refresh_less], lambda cost: cost.overhead, budget)
            self._cut([smaller, _arrow_for_auto], lambda cost: cost.overhead, budget)
        return self._solved

    def overhead(self, part: Callable[[Cost], float] = lambda cost: cost.overhead) -> float:
        """The predicted time of all layers, or a part of it, relative to their forward and backward passes."""
        costs = [self._cost(layer, choice) for layer, choice in {**self._fixed, **self._solved}.items()]
        return sum(map(part, costs)) / sum(cost.passes for cost in costs)

    def _cost(self, layer: Layer, choice: Choice) -> Cost:
        return layer_cost(layer, choice.config, self._samples[layer], self._rates[layer.weight.device])

    def _bytes(self, layer: Layer, choice: Choice) -> int:
        return bytes_kept(layer, choice.config, self._samples[layer])

    def _cut(self, changes: list[Change], part: Callable[[Cost], float], limit: float) -> None:
        """Make changes until ``part`` of the predicted overhead is at most ``limit``, or none saves any of it."""

        def option(layer: Layer) -> Option | None:
            present = part(self._cost(layer, self._solved[layer]))
            wanted = [change(layer, self._asked[layer]) for change in changes]
            found = [self._option(layer, asked, present, part) for asked in wanted if asked is not None]
            best = max(found, key=lambda o: o.saving, default=None)
            return best if best is not None and best.saving > 0 else None

        passes = sum(self._cost(layer, choice).passes for layer, choice in {**self._fixed, **self._solved}.items())
        descend((self.overhead(part) - limit) * passes, self._asked, option, self._take, self._fits)

    def _option(
        self, layer: Layer, asked: Choice, present: float, part: Callable[[Cost], float] = lambda cost: 0.0
    ) -> Option:
        solved = choose_solver(
            layer,
            asked,
            self._samples[layer],
            self._rates[layer.weight.device],
            room=self._room(layer),
            dual=self._limits.dual,
        )
        growth = self._bytes(layer, solved) - self._bytes(layer, self._solved[layer])
        return Option(present - part(self._cost(layer, solved)), asked, solved, growth)

    def _take(self, layer: Layer, option: Option) -> None:
        self._kept += option.growth
        self._asked[layer], self._solved[layer] = option.asked, option.solved

    @property
    def _free(self) -> float:
        """Bytes still to be given."""
        limits = self._limits
        return float("inf") if limits.state_bytes is None else limits.state_bytes - limits.other_bytes - self._kept

    def _room(self, layer: Layer) -> float:
        """Bytes that the other layers leave."""
        return self._free + self._bytes(layer, self._solved[layer])

    def _fits(self, option: Option) -> bool:
        return option.growth <= max(0.0, self._free)

    def _sample_less(self, layer: Layer, choice: Choice) -> Choice | None:
        """Statistics from half the samples, as long as these are many and their product takes most of a refresh."""
        sample_every = 2 * choice.config.sample_every
        if self._samples[layer].count < SAMPLES_PER_INPUT * sample_every * layer.d_in:
            return None
        cost = self._cost(layer, self._solved[layer])
        return choice.change("max_overhead", sample_every=sample_every) if cost.gather > cost.refresh else None


def _refresh_less(layer: Layer, choice: Choice) -> Choice | None:
    """Statistics half as often; the average forgets as much per step as before."""
    config = choice.config
    if 2 * config.refresh_every > LONGEST_REFRESH:
        return None
    return choice.change("max_overhead", refresh_every=2 * config.refresh_every, b_s=config.b_s**2)


def _arrow_for_auto(layer: Layer, choice: Choice) -> Choice | None:
    chosen = solver_named(choice.config.solver).chooses
    return as_arrow(choice, "the preconditioner alone: max_overhead") if chosen else None
