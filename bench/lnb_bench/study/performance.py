"""Performance profiles (Dolan and More, 2002): on which share of the tasks is an optimizer within a factor of the fastest?

The factor is time (or steps) to the target over that of the fastest contestant of the task, tuned or as it is; tasks whose
target nobody reached are left out, and an optimizer that took no part in a task counts as one that never got there. The score
is the area under the profile from 1 to :data:`FARTHEST`, over its largest possible value, as AlgoPerf's benchmark score.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lnb_bench.study.canvas import OTHERS, OURS, Theme, dress, png, subplots
from lnb_bench.study.measures import Comparison, Row
from lnb_bench.study.words import is_ours

FARTHEST = 4.0
MEASURES = ("seconds_to_target", "steps_to_target")
NAMES = {"seconds_to_target": "time", "steps_to_target": "steps"}
HEADERS = (
    "optimizer", "reached", "fastest", "score, time", "score, steps", "default: reached", "default: score, time",
    "default: score, steps",
)  # fmt: skip


@dataclass(frozen=True)
class Contestant:
    """An optimizer, tuned or as it is.

    Attributes:
        label: its name in the suite.
        default: as it is.
        ours: an LNB variant.
        ratios: by measure, one factor for each task; infinite where it never got there.
    """

    label: str
    default: bool
    ours: bool
    ratios: dict[str, tuple[float, ...]]

    def share(self, measure: str, factor: float) -> float:
        """Share of the tasks that it does within ``factor`` of the fastest."""
        ratios = self.ratios[measure]
        return sum(ratio <= factor for ratio in ratios) / len(ratios) if ratios else math.nan

    def score(self, measure: str) -> float:
        """Area under the profile, 0 to 1; NaN where no target was reached by anybody."""
        ratios = self.ratios[measure]
        parts = [max(0.0, FARTHEST - ratio) / (FARTHEST - 1) for ratio in ratios]
        return sum(parts) / len(parts) if parts else math.nan


def contestants(comparisons: Sequence[Comparison]) -> list[Contestant]:
    """Every optimizer of the comparisons (controls aside), then every one that was also run as it is."""
    counted = [comparison for comparison in comparisons if not comparison.task.control]
    known = {row.optimizer: is_ours(c, row) for c in counted for row in c.rows}
    forms = [(label, False) for label in known]
    forms += [(label, True) for label in known if any(_row(c, label, True) is not None for c in counted)]
    ratios: dict[tuple[str, bool], dict[str, list[float]]] = {form: {m: [] for m in MEASURES} for form in forms}
    for measure in MEASURES:
        for comparison in counted:
            values = {form: _value(_row(comparison, *form), measure) for form in forms}
            fastest = min(values.values())
            if math.isfinite(fastest):
                for form, value in values.items():
                    ratios[form][measure].append(value / fastest)
    return [
        Contestant(label, default, known[label], {m: tuple(r) for m, r in ratios[label, default].items()})
        for label, default in forms
    ]


def _row(comparison: Comparison, label: str, default: bool) -> Row | None:
    row = next((row for row in comparison.rows if row.optimizer == label), None)
    return row.default if default and row is not None else row


def _value(row: Row | None, measure: str) -> float:
    found = None if row is None else getattr(row, measure)
    return math.inf if found is None else float(found.median)


def performance_table(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """A line per optimizer in the order of :data:`HEADERS`, the best score in time first."""
    found = contestants(comparisons)
    as_it_is = {one.label: one for one in found if one.default}
    tuned = sorted((one for one in found if not one.default), key=lambda one: -one.score("seconds_to_target"))
    lines: list[tuple[str, ...]] = []
    for one in tuned:
        default = as_it_is.get(one.label)
        fastest = sum(ratio == 1 for ratio in one.ratios["seconds_to_target"])
        lines.append(
            (one.label, _reached(one), str(fastest), *_scores(one), *(("", "", "") if default is None else (
                _reached(default), *_scores(default))))
        )  # fmt: skip
    return lines


def _reached(one: Contestant) -> str:
    ratios = one.ratios["seconds_to_target"]
    return f"{sum(map(math.isfinite, ratios))} of {len(ratios)}"


def _scores(one: Contestant) -> tuple[str, str]:
    time, steps = ("" if math.isnan(one.score(m)) else f"{one.score(m):.2f}" for m in MEASURES)
    return time, steps


def picture(comparisons: Sequence[Comparison], theme: Theme) -> bytes:
    """The profiles in time and in steps, PNG: tuned optimizers solid, LNB as it is dashed."""
    figure, panels = subplots(theme, 2, 1, figsize=(5.2, 6.6))
    found = [one for one in contestants(comparisons) if one.ours or not one.default]
    for panel, measure in zip(panels, MEASURES, strict=True):
        mine, others = itertools.cycle(OURS), itertools.cycle(OTHERS)
        for one in found:
            colour = next(mine if one.ours else others)
            factors = sorted({1.0, FARTHEST, *(r for r in one.ratios[measure] if r < FARTHEST)})
            panel.step(
                factors,
                [one.share(measure, factor) for factor in factors],
                where="post",
                color=colour,
                linestyle="--" if one.default else "-",
                linewidth=1.4,
                label=f"{one.label}, default" if one.default else one.label,
            )
        panel.set_ylim(-0.02, 1.02)
        dress(panel, theme, f"{NAMES[measure]} to the target over the fastest's", "share of the tasks")
    panels[0].legend(fontsize=7, frameon=False, labelcolor=theme.ink, ncols=2)
    return png(figure)
