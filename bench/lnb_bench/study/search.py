"""Trials of a search: quasi-random points in the box of what may be varied, as AlgoPerf (arXiv:2306.07179) tunes.

Points are those of a scrambled Halton sequence, so that few trials cover the box evenly, and all trials of an optimizer are
known before the first is run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import qmc

SEED = 0  # of the scrambling
DIGITS = 4  # of drawn numbers: the same with every version of the sequence's arithmetic


@dataclass(frozen=True)
class Knob:
    """What one coordinate of the box may be: one of ``choices`` if there are any, else a number from ``low`` to ``high``.

    Attributes:
        low: smallest number.
        high: largest number.
        log: whether numbers are drawn evenly on a logarithmic scale.
        choices: values of any kind.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, place: float) -> Any:
        """The value at ``place`` in [0, 1)."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + place * (self.high - self.low)
        return float(f"{value:.{DIGITS}g}")

    def place(self, value: float) -> float:
        """Where a number lies between ``low`` (0) and ``high`` (1)."""
        ends = [math.log(end) if self.log else end for end in (self.low, value, self.high)]
        return (ends[1] - ends[0]) / (ends[2] - ends[0])


@dataclass(frozen=True)
class Knobs:
    """What a trial sets beside the rate, over the settings of its optimizer.

    Attributes:
        warmup: share of the steps over which the rate rises.
        weight_decay: None for the optimizer's.
        settings: further arguments.
    """

    warmup: float = 0.0
    weight_decay: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, description: dict[str, Any]) -> Knobs:
        """The knobs with which a cell has this description."""
        return cls(description.get("warmup", 0.0), description["weight_decay"], description["settings"])


def trial_of(description: dict[str, Any]) -> str:
    """What is tuned in the run of this description, as a text that is the same for the same trial."""
    names = ("lr", "warmup", "weight_decay", "settings")
    return json.dumps({name: description[name] for name in names if name in description}, sort_keys=True)


Trial = tuple[float, float, float | None, dict[str, Any]]
"""Rate, warm-up, weight decay (None: the default) and further settings."""


def draw(knobs: dict[str, Knob], count: int) -> list[Trial]:
    """``count`` trials in the box of ``knobs``, which has at least ``lr``; more trials begin with the same ones."""
    if count < 1:
        return []
    names = list(knobs)
    points = qmc.Halton(len(names), scramble=True, rng=SEED).random(count)
    trials = []
    for point in points.tolist():
        values = {name: knobs[name].at(place) for name, place in zip(names, point, strict=True)}
        lr, warmup, decay = values.pop("lr"), values.pop("warmup", 0.0), values.pop("weight_decay", None)
        trials.append((lr, warmup, decay, values))
    return trials
