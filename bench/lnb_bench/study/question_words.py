"""Variants of one optimizer as a table: what each is worth on every task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lnb_bench.study.groups import SuiteQuestion
from lnb_bench.study.measures import Comparison, Row
from lnb_bench.study.words import show


def question_headers(question: SuiteQuestion, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Column titles."""
    return ("variant", *(c.task.label for c in comparisons), "steps, mean", "time per step, mean")


def question_table(question: SuiteQuestion, comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """A line per variant: the value at the end, and the steps to the target in units of the first variant's.

    Means are geometric, over the tasks on which both got there.
    """
    lines = []
    for label in question.optimizers:
        cells, steps, costs = [], [], []
        for comparison in comparisons:
            row, first = (_row(comparison, name) for name in (label, question.optimizers[0]))
            final = "no result" if row is None or row.final is None else show(comparison.metric, row.final.median)
            ratio = _ratio(row, first, "steps_to_target")
            cells.append(
                final if math.isnan(ratio) else f"{final}, x{ratio:.2f}" if ratio < math.inf else f"{final}, never"
            )
            steps.append(ratio)
            costs.append(_ratio(row, first, "milliseconds"))
        lines.append((label, *cells, _mean(steps), _mean(costs)))
    return lines


def _row(comparison: Comparison, label: str) -> Row | None:
    return next((row for row in comparison.rows if row.optimizer == label and row.runs), None)


def _ratio(row: Row | None, first: Row | None, measure: str) -> float:
    """NaN where the first variant has no finite measure to compare with."""
    mine, other = (None if one is None else getattr(one, measure) for one in (row, first))
    if mine is None or other is None or math.isinf(other.median):
        return math.nan
    return float(mine.median / other.median)


def _mean(ratios: list[float]) -> str:
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return f"x{math.exp(sum(map(math.log, finite)) / len(finite)):.2f}" if finite else ""
