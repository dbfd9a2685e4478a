"""One layer's settings, cheaper ones to change to, and the greedy descent that makes such changes until a budget is met."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lnb.config import Config
from lnb.layers.capture import Samples
from lnb.layers.claimed import Layer
from lnb.planning.memory import input_bytes, state_bytes
from lnb.solvers.arrow import Arrow
from lnb.statistics.factored import block_count

SMALLEST_BLOCK = 64
"""To save memory, blocks are cut down to this many inputs before averages are given up, and then to an eighth of it."""


@dataclass(frozen=True)
class Choice:
    """One layer's settings, and why they are not those that were asked for."""

    config: Config
    reason: str = ""

    def change(self, reason: str, **settings: object) -> Choice:
        """The same with other settings and one more reason."""
        known = self.reason.split("; ") if self.reason else []
        reasons = known if reason in known else [*known, reason]
        return Choice(dataclasses.replace(self.config, **settings), "; ".join(reasons))  # type: ignore[arg-type]


Choices = dict[Layer, Choice]
Change = Callable[[Layer, Choice], "Choice | None"]


def first_choice(config: Config) -> Choice:
    """Where every layer starts: the settings that were asked for, without the budgets."""
    return Choice(dataclasses.replace(config, max_overhead=None, max_state_bytes=None))


def bytes_kept(layer: Layer, config: Config, samples: Samples | None) -> int:
    """State of the layer, and the inputs it keeps from the backward pass to the step."""
    return state_bytes(layer, config) + (0 if samples is None else input_bytes(layer, config, samples))


@dataclass(frozen=True)
class Option:
    """A cheaper choice for one layer: what it saves, in bytes or seconds; with ``"auto"`` still open, and without; and the
    additional bytes that it takes."""

    saving: float
    asked: Choice
    solved: Choice
    growth: int = 0


def descend(
    excess: float,
    layers: Iterable[Layer],
    option: Callable[[Layer], Option | None],
    take: Callable[[Layer, Option], None],
    allowed: Callable[[Option], bool] = lambda option: True,
) -> float:
    """Take the option that saves most, of all layers, until nothing exceeds a budget any more or none is left.

    Args:
        excess: over the budget.
        layers: the layers; of equal savings the first layer's is taken.
        option: a layer's best option at present.
        take: makes it the layer's choice.
        allowed: whether it may be taken now.

    Returns:
        What the excess has become.
    """
    options = {layer: option(layer) for layer in layers}
    while excess > 0:
        open_ones = [(layer, o) for layer, o in options.items() if o is not None and allowed(o)]
        if not open_ones:
            break
        layer, best = max(open_ones, key=lambda pair: pair[1].saving)
        take(layer, best)
        excess -= best.saving
        options[layer] = option(layer)
    return excess


def halve_blocks(smallest: int, budget: str) -> Change:
    """The change to blocks of half the size, or the next size that divides; not below ``smallest``."""

    def change(layer: Layer, choice: Choice) -> Choice | None:
        if not choice.config.factored:
            return None
        _, outputs, inputs = layer.shape
        limit = choice.config.block_size
        present = inputs // layer.input_blocks(limit)
        if choice.config.region.two_sided:
            present = max(present, outputs // block_count(outputs, limit))
        size = present // 2
        while size >= smallest:
            other = choice.change(f"smaller blocks: {budget}", block_size=size)
            if state_bytes(layer, other.config) < state_bytes(layer, choice.config):
                return other
            size //= 2
        return None

    return change


def as_arrow(choice: Choice, reason: str) -> Choice:
    """The arrow preconditioner, in the region that sets the same bound without a factor."""
    region = choice.config.region.without_factor or choice.config.trust_region
    return choice.change(reason, solver=Arrow.name, trust_region=region)
