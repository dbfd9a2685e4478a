"""LNB's value at the end of equal steps beside every other's, in words: a target that few reach hides who is behind."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lnb_bench.study.measures import Comparison, Row
from lnb_bench.study.words import is_ours, show, show_estimate

NOTE = (
    "Verdicts above are by time to the target. These are by the value at the end of equal steps, clear where the intervals "
    "do not overlap."
)


def endings(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for every task that is no control: whom the first LNB contestant ends clearly behind, ahead of, or beside."""
    sentences = []
    for comparison in comparisons:
        rows = [row for row in comparison.rows if row.final is not None]
        mine = next((row for row in rows if is_ours(comparison, row)), None)
        if mine is None or comparison.task.control or all(is_ours(comparison, row) for row in rows):
            continue
        places: dict[str, list[str]] = {
            "clearly worse than": [],
            "clearly better than": [],
            "not clearly apart from": [],
        }
        for row in rows:
            if not is_ours(comparison, row):
                places[_place(comparison, mine, row)].append(row.optimizer)
        said = "; ".join(f"{place} {', '.join(labels)}" for place, labels in places.items() if labels)
        ended = show_estimate(comparison.metric, mine.final)
        way = _on_the_way(comparison, mine) if places["clearly worse than"] else ""
        sentences.append(f"{comparison.task.label}: {mine.optimizer} ends at {ended}, {said}.{way}")
    return sentences


def _on_the_way(comparison: Comparison, mine: Row) -> str:
    """Where the best value of its runs was: one that ends behind may have been ahead, and have overfitted since."""
    pick = max if comparison.higher_is_better else min
    best = [pick(run.curve, key=lambda point: point[2]) for run in mine.runs]
    value = show(comparison.metric, statistics.median(value for _, _, value in best))
    step = statistics.median(step for step, _, _ in best)
    return f" The best on its way was {value}, after {step:g} of {comparison.task.steps} steps."


def _place(comparison: Comparison, mine: Row, other: Row) -> str:
    ours, theirs = mine.final, other.final
    if ours is None or theirs is None:
        raise ValueError("a row without a value at the end cannot be compared")
    above, below = ours.low > theirs.high, ours.high < theirs.low
    if not above and not below:
        return "not clearly apart from"
    return "clearly better than" if above == comparison.higher_is_better else "clearly worse than"
