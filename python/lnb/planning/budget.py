"""Choosing each layer's settings: the cheapest solver that is right for them, inside budgets of memory and time.

All choices are greedy and made in the layers' order, from the settings that were asked for towards cheaper ones; for equal
rates, rows and settings they are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from lnb.blocks import Block
from lnb.capture import Rows
from lnb.config import WITH_FACTOR, Config
from lnb.factored import block_count
from lnb.planning.cost import Cost, layer_cost
from lnb.planning.memory import input_bytes, state_bytes
from lnb.planning.rates import Rates

LONGEST_REFRESH = 100
"""Steps: no budget makes statistics older than this."""
ROWS_PER_INPUT = 16
"""A sample keeps at least so many rows per input of the layer."""
SMALLEST_BLOCK = 64
"""Inputs of a block down to which blocks are cut for memory before averages are given up; then down to an eighth of it."""
STEADY_SHARE = 0.7
"""Of the time budget, what is left to solutions and trust regions: the rest pays for statistics."""


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


Choices = dict[Block, Choice]
Change = Callable[[Block, Choice], "Choice | None"]


def first_choice(config: Config) -> Choice:
    """Where every layer starts: the settings that were asked for, without the budgets."""
    return Choice(dataclasses.replace(config, max_overhead=None, max_state_bytes=None))


def bytes_kept(block: Block, config: Config, rows: Rows | None) -> int:
    """State of the layer, and the inputs it keeps from the backward pass to the step."""
    return state_bytes(block, config) + (0 if rows is None else input_bytes(block, config, rows))


@dataclass(frozen=True)
class _Option:
    """A cheaper choice for one layer: what it saves, in bytes or seconds; with ``"auto"`` still open, and without; and
    the bytes that it takes more."""

    saving: float
    asked: Choice
    solved: Choice
    growth: int = 0


def _descend(
    excess: float,
    blocks: Iterable[Block],
    option: Callable[[Block], _Option | None],
    take: Callable[[Block, _Option], None],
    allowed: Callable[[_Option], bool] = lambda option: True,
) -> float:
    """Take the option that saves most, of all layers, until nothing exceeds a budget any more or none is left.

    Args:
        excess: over the budget.
        blocks: the layers; of equal savings the first layer's is taken.
        option: a layer's best option at present.
        take: makes it the layer's choice.
        allowed: whether it may be taken now.

    Returns:
        What the excess has become.
    """
    options = {block: option(block) for block in blocks}
    while excess > 0:
        open_ones = [(block, o) for block, o in options.items() if o is not None and allowed(o)]
        if not open_ones:
            break
        block, best = max(open_ones, key=lambda pair: pair[1].saving)
        take(block, best)
        excess -= best.saving
        options[block] = option(block)
    return excess


# -- memory -----------------------------------------------------------------------------------------------------------


def fit_memory(choices: Choices, limit: int, others: int) -> Choices:
    """Change settings until the state of all layers, and ``others`` bytes besides, are at most ``limit`` bytes.

    Smaller blocks come first, then no averages of second moments, then blocks smaller still, then the arrow
    preconditioner alone; of the layers always that one whose change frees most.

    Raises:
        ValueError: it cannot be done.
    """
    choices, budget = dict(choices), "max_state_bytes"
    total = others + sum(state_bytes(block, choice.config) for block, choice in choices.items())
    stages = (
        _halve_blocks(SMALLEST_BLOCK, budget),
        _drop_averages,
        _halve_blocks(SMALLEST_BLOCK // 8, budget),
        _arrow_alone,
    )

    def take(block: Block, option: _Option) -> None:
        choices[block] = option.solved

    excess: float = total - limit
    for change in stages:

        def option(block: Block, change: Change = change) -> _Option | None:
            other = change(block, choices[block])
            if other is None:
                return None
            saving = state_bytes(block, choices[block].config) - state_bytes(block, other.config)
            return _Option(saving, other, other) if saving > 0 else None

        excess = _descend(excess, choices, option, take)
    if excess > 0:
        raise ValueError(
            f"max_state_bytes={limit} cannot be met: these layers and parameters need at least {limit + int(excess)} bytes, "
            f"even with the arrow preconditioner alone. Raise it, or leave it None"
        )
    return choices


def _halve_blocks(smallest: int, budget: str) -> Change:
    def change(block: Block, choice: Choice) -> Choice | None:
        if not choice.config.factored:
            return None
        _, outputs, inputs = block.shape
        sides = [inputs] + ([outputs] if choice.config.trust_region == "balanced" else [])
        present = max(side // block_count(side, choice.config.block_size) for side in sides)
        size = present // 2
        while size >= smallest:
            other = choice.change(f"smaller blocks: {budget}", block_size=size)
            if state_bytes(block, other.config) < state_bytes(block, choice.config):
                return other
            size //= 2
        return None

    return change


def _drop_averages(block: Block, choice: Choice) -> Choice | None:
    if not choice.config.keeps_second_moment:
        return None
    reason = "no average of second moments: max_state_bytes"
    if choice.config.factored:
        return choice.change(reason, b_s=0.0)
    return choice.change(reason, b_s=0.0, refresh_every=1)


def _arrow_alone(block: Block, choice: Choice) -> Choice | None:
    if choice.config.solver == "arrow":
        return None
    return _as_arrow(choice, "the preconditioner alone: max_state_bytes")


def _as_arrow(choice: Choice, reason: str) -> Choice:
    """The arrow preconditioner; what the balanced or spectral region bounds, ``"neuron"`` bounds without a factor."""
    region = choice.config.trust_region
    return choice.change(reason, solver="arrow", trust_region="neuron" if region in WITH_FACTOR else region)


# -- time -------------------------------------------------------------------------------------------------------------


def choose_solver(block: Block, choice: Choice, rows: Rows, rates: Rates, room: float = float("inf")) -> Choice:
    """The cheapest solver for ``"auto"`` of those right for the settings; any other choice as it is.

    Remembered second moments, and trust regions that need a factor, are served by a factor. Otherwise conjugate gradients
    on the second moment and on the kept inputs take the same steps (up to rounding), and the exact solutions, a factor of
    each step's own second moment or the dual, leave nothing to be gained by more iterations: the cheapest is taken.

    Args:
        block: the layer.
        choice: its settings so far.
        rows: of one step.
        rates: of its device.
        room: bytes that its state and kept inputs may take, where another solver needs fewer.
    """
    config = choice.config
    if config.solver != "auto":
        return choice
    if config.factored:
        return choice.change("a factor serves until the next refresh", solver="cholesky")
    candidates = {
        "pcg": "conjugate gradients on the second moment",
        "cholesky": "exact, a factor of each second moment",
    }
    if config.ridge_mode == "absolute":
        candidates["matrix_free"] = "conjugate gradients on the kept inputs"
        if config.ridge > 0 and rows.count < block.d_in:
            candidates["dual"] = f"exact, {rows.count} rows are fewer than {block.d_in} inputs"
    priced: dict[str, float] = {}
    for solver in candidates:
        changed = dataclasses.replace(config, solver=solver)
        if solver == "pcg" or bytes_kept(block, changed, rows) <= room:
            priced[solver] = layer_cost(block, changed, rows, rates).overhead
    best = min(priced, key=priced.__getitem__)
    slower = min((time for solver, time in priced.items() if solver != best), default=None)
    against = "" if slower is None else f", {1e3 * priced[best]:.3g} ms against {1e3 * slower:.3g}"
    return choice.change(f"auto: {candidates[best]}{against}", solver=best)


@dataclass(frozen=True)
class Limits:
    """Budgets of all layers together.

    Attributes:
        overhead: time of statistics, solutions and trust regions, as a fraction of that of forward and backward passes.
        state_bytes: state of the optimizer, and inputs that layers keep.
        other_bytes: what parameters of no layer take of that.
    """

    overhead: float | None = None
    state_bytes: int | None = None
    other_bytes: int = 0


class TimeBudget:
    """Chooses solvers, and cheaper settings until the limits are met, or no cheaper ones are left.

    First blocks are cut until what every step does takes at most :data:`STEADY_SHARE` of the budget; then statistics are
    taken from fewer rows, where these are many and the estimate stays good; then less often; last, layers whose solver is
    ``"auto"`` get the arrow preconditioner alone. Of the layers always the one is changed that saves most time.
    """

    def __init__(
        self,
        choices: Choices,
        fixed: Choices,
        rows: Mapping[Block, Rows],
        rates: Mapping[torch.device, Rates],
        limits: Limits,
    ) -> None:
        """Take note of everything.

        Args:
            choices: the layers to decide on, as they were asked for.
            fixed: layers decided on earlier, whose cost counts too.
            rows: of one step, of all of these.
            rates: of every device.
            limits: the budgets.
        """
        self._asked, self._fixed, self._rows, self._rates, self._limits = dict(choices), fixed, rows, rates, limits
        self._solved: Choices = dict(choices)
        self._kept = sum(self._bytes(block, choice) for block, choice in {**fixed, **choices}.items())
        for block, choice in choices.items():
            self._take(block, self._option(block, choice, 0.0))

    def choose(self) -> Choices:
        """The settings of the layers to decide on."""
        budget = self._limits.overhead
        if budget is not None:
            smaller = _halve_blocks(SMALLEST_BLOCK // 2, "max_overhead")
            self._cut([smaller], lambda cost: cost.solve + cost.region, STEADY_SHARE * budget)
            self._cut([self._sample_less], lambda cost: cost.overhead, budget)
            self._cut([_refresh_less], lambda cost: cost.overhead, budget)
            self._cut([smaller, _arrow_for_auto], lambda cost: cost.overhead, budget)
        return self._solved

    def overhead(self, part: Callable[[Cost], float] = lambda cost: cost.overhead) -> float:
        """What is predicted of all layers, or a part of it, relative to their forward and backward passes."""
        costs = [self._cost(block, choice) for block, choice in {**self._fixed, **self._solved}.items()]
        return sum(map(part, costs)) / sum(cost.passes for cost in costs)

    def _cost(self, block: Block, choice: Choice) -> Cost:
        return layer_cost(block, choice.config, self._rows[block], self._rates[block.weight.device])

    def _bytes(self, block: Block, choice: Choice) -> int:
        return bytes_kept(block, choice.config, self._rows[block])

    def _cut(self, changes: list[Change], part: Callable[[Cost], float], limit: float) -> None:
        """Make changes until ``part`` of the predicted overhead is at most ``limit``, or none saves any of it."""

        def option(block: Block) -> _Option | None:
            present = part(self._cost(block, self._solved[block]))
            wanted = [change(block, self._asked[block]) for change in changes]
            found = [self._option(block, asked, present, part) for asked in wanted if asked is not None]
            best = max(found, key=lambda o: o.saving, default=None)
            return best if best is not None and best.saving > 0 else None

        passes = sum(self._cost(block, choice).passes for block, choice in {**self._fixed, **self._solved}.items())
        _descend((self.overhead(part) - limit) * passes, self._asked, option, self._take, self._fits)

    def _option(
        self, block: Block, asked: Choice, present: float, part: Callable[[Cost], float] = lambda cost: 0.0
    ) -> _Option:
        solved = choose_solver(block, asked, self._rows[block], self._rates[block.weight.device], self._room(block))
        growth = self._bytes(block, solved) - self._bytes(block, self._solved[block])
        return _Option(present - part(self._cost(block, solved)), asked, solved, growth)

    def _take(self, block: Block, option: _Option) -> None:
        self._kept += option.growth
        self._asked[block], self._solved[block] = option.asked, option.solved

    @property
    def _free(self) -> float:
        """Bytes still to be given."""
        limits = self._limits
        return float("inf") if limits.state_bytes is None else limits.state_bytes - limits.other_bytes - self._kept

    def _room(self, block: Block) -> float:
        """Bytes that the other layers leave."""
        return self._free + self._bytes(block, self._solved[block])

    def _fits(self, option: _Option) -> bool:
        return option.growth <= max(0.0, self._free)

    def _sample_less(self, block: Block, choice: Choice) -> Choice | None:
        """From half the rows, as long as they are many, and the product over them is most of a refresh."""
        sample_every = 2 * choice.config.sample_every
        if self._rows[block].count < ROWS_PER_INPUT * sample_every * block.d_in:
            return None
        cost = self._cost(block, self._solved[block])
        return choice.change("max_overhead", sample_every=sample_every) if cost.gather > cost.refresh else None


def _refresh_less(block: Block, choice: Choice) -> Choice | None:
    """Half as often; the average forgets as much per step as before."""
    config = choice.config
    if 2 * config.refresh_every > LONGEST_REFRESH:
        return None
    return choice.change("max_overhead", refresh_every=2 * config.refresh_every, b_s=config.b_s**2)


def _arrow_for_auto(block: Block, choice: Choice) -> Choice | None:
    return _as_arrow(choice, "the preconditioner alone: max_overhead") if choice.config.solver == "auto" else None
