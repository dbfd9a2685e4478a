"""Why LNB loses where it loses: measured by runs that take one possible cause away.

A loss is *cost* where LNB needs no more steps to the target than the other, which then wins by cheaper steps. Else LNB is run
again, at the same trial and with the same seeds, with its metric made anew in every step (is it *drift* of the metric
between refreshes?), and both are run with four times the examples per step (is it *noise* of the gradients?). The reason is
the change that takes LNB's steps to at most the other's; where none does, the report says so, and shows the figures.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass

from lnb_bench.study.measures import Comparison, Row, first_hit
from lnb_bench.study.outcomes import Outcome, Store
from lnb_bench.study.search import Knobs
from lnb_bench.study.suite import Cell, Suite
from lnb_bench.study.words import LOSS, duels

LARGER = 4  # batches, in units of the task's
SEEDS = 3


@dataclass(frozen=True)
class Question:
    """One loss, and the runs that answer for it.

    Attributes:
        other: label of the optimizer that LNB lost to.
        fresh: LNB with a metric of every step.
        large: LNB with larger batches; empty where the suite does not give the task's batch.
        others_large: the other with larger batches.
    """

    ours: str
    other: str
    fresh: tuple[Cell, ...]
    large: tuple[Cell, ...]
    others_large: tuple[Cell, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All runs."""
        return self.fresh + self.large + self.others_large


@dataclass(frozen=True)
class Reason:
    """What was found for one loss; NaN where it was not measured, infinite where LNB never reached the target.

    Attributes:
        task: label.
        ours: label of the LNB contestant.
        other: label of the other.
        steps: LNB's steps to the target over the other's.
        cost: LNB's time per step over the other's.
        fresh: as ``steps``, with a metric of every step.
        large: as ``steps``, both with larger batches.
        reason: ``"cost"``, ``"drift"``, ``"noise"``, or ``"none of these"``.
    """

    task: str
    ours: str
    other: str
    steps: float
    cost: float
    fresh: float
    large: float
    reason: str


def questions(suite: Suite, comparison: Comparison) -> list[Question]:
    """The losses of a comparison that cost does not explain, with the runs that ask why."""
    found = []
    task, seeds = comparison.task, suite.at(comparison.task).judged_seeds[:SEEDS]
    rows = {row.optimizer: row for row in comparison.rows}
    contestants = {optimizer.label: optimizer for optimizer in suite.contestants(task)}
    larger = None if task.batch_size is None else dataclasses.replace(task, batch_size=LARGER * task.batch_size)
    for duel in duels(comparison):
        mine, other = rows[duel.ours], rows[duel.other]
        if duel.verdict != LOSS or _ratio(_steps(mine), _steps(other)) <= 1:
            continue

        def again(row: Row, change: dict[str, int], where: bool) -> tuple[Cell, ...]:
            """The row's trial with a change of its settings, on the task or on the one of larger batches."""
            place = larger if where else task
            if row.knobs is None or row.lr is None or place is None:
                return ()
            knobs = Knobs(row.knobs.warmup, row.knobs.weight_decay, {**row.knobs.settings, **change})
            return tuple(Cell(place, contestants[row.optimizer], row.lr, seed, suite.schedule, knobs) for seed in seeds)

        fresh = again(mine, {"refresh_every": 1}, False)
        found.append(Question(duel.ours, duel.other, fresh, again(mine, {}, True), again(other, {}, True)))
    return found


def reasons(suite: Suite, store: Store, comparison: Comparison) -> list[Reason]:
    """Every loss of a comparison with its reason; a loss whose runs are missing is \"not measured\"."""
    asked = {question.other: question for question in questions(suite, comparison)}
    rows = {row.optimizer: row for row in comparison.rows}
    found = []
    for duel in duels(comparison):
        if duel.verdict != LOSS:
            continue
        mine, other = rows[duel.ours], rows[duel.other]
        steps = _ratio(_steps(mine), _steps(other))
        cost = _ratio(_milliseconds(mine), _milliseconds(other))
        fresh = large = math.nan
        question = asked.get(duel.other)
        if question is not None:
            fresh = _ratio(_median(store, question.fresh, comparison.target), _steps(other))
            large = _ratio(*(_median(store, c, comparison.target) for c in (question.large, question.others_large)))
        found.append(
            Reason(comparison.task.label, duel.ours, duel.other, steps, cost, fresh, large, _named(steps, fresh, large))
        )
    return found


def _named(steps: float, fresh: float, large: float) -> str:
    if steps <= 1:
        return "cost"
    named = [name for name, ratio in (("drift", fresh), ("noise", large)) if ratio <= 1]
    if named:
        return " and ".join(named)
    return "not measured" if math.isnan(fresh) and math.isnan(large) else "none of these"


def _steps(row: Row) -> float:
    return math.inf if row.steps_to_target is None else row.steps_to_target.median


def _milliseconds(row: Row) -> float:
    return math.nan if row.milliseconds is None else row.milliseconds.median


def _ratio(ours: float, theirs: float) -> float:
    """NaN where neither is finite."""
    return math.nan if math.isinf(theirs) and not math.isfinite(ours) else ours / theirs


def _median(store: Store, cells: tuple[Cell, ...], target: float) -> float:
    """Median steps to the target; a run without result never got there. NaN where a run is missing."""
    runs: list[Outcome | None] = [store.load(cell) for cell in cells]
    kept = [run for run in runs if run is not None]
    if not kept or len(kept) < len(runs):
        return math.nan
    return statistics.median(first_hit(run, target)[0] for run in kept)
