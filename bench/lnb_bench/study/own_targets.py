"""LNB against what each other reaches by itself: its time to the tuned other's own best value, over the other's time.

One target for all says little of optimizers that do better than the baseline which set it. The target of a column is the
median over seeds of the best value that the tuned optimizer reaches; the time is that of the first evaluation that meets it.
Under 1: LNB is there first. "never": LNB's median run does not get there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lnb_bench.study.measures import Comparison, Row, best_reached, first_hit
from lnb_bench.study.words import is_ours


def own_target_ratios(comparison: Comparison, default: bool) -> dict[str, float]:
    """By the other's label: LNB's time over its, tuned or as it is; infinite where LNB never gets there.

    Empty where the comparison has no run of LNB in that form. NaN where the other's own median run does not get there, which
    can happen with an even number of seeds.
    """
    mine = next((row for row in comparison.rows if is_ours(comparison, row)), None)
    form = mine.default if default and mine is not None else mine
    if mine is None or form is None or not form.runs:
        return {}
    found = {}
    for other in comparison.rows:
        if other.runs and not is_ours(comparison, other):
            target = best_reached(other.runs)
            ours, theirs = _seconds(form, target), _seconds(other, target)
            found[other.optimizer] = math.nan if math.isinf(theirs) else ours / theirs
    return found


def _seconds(row: Row, target: float) -> float:
    return statistics.median(first_hit(run, target)[1] for run in row.runs)


def own_target_headers(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """The titles of the columns: one per optimizer that is not LNB."""
    return ("task", "LNB", *_others(comparisons))


def own_target_table(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Two lines per task that is no control, LNB tuned and as it is; then how often it is there first."""
    lines: list[tuple[str, ...]] = []
    counted = [comparison for comparison in comparisons if not comparison.task.control]
    for default, form in ((False, "tuned"), (True, "as it is")):
        rows = {comparison.task.label: own_target_ratios(comparison, default) for comparison in counted}
        lines += [
            (task, form, *(_shown(ratios.get(label)) for label in _others(comparisons)))
            for task, ratios in rows.items()
            if ratios
        ]
        firsts = [_first([r[label] for r in rows.values() if label in r]) for label in _others(comparisons)]
        if any(rows.values()):
            lines.append(("there first", form, *firsts))
    return lines


def _others(comparisons: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(r.optimizer for c in comparisons for r in c.rows if r.runs and not is_ours(c, r)))


def _shown(ratio: float | None) -> str:
    if ratio is None or math.isnan(ratio):
        return ""
    return "never" if math.isinf(ratio) else f"{ratio:.2f}"


def _first(ratios: list[float]) -> str:
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return f"{sum(ratio <= 1 for ratio in known)} of {len(known)}"
