"""Which runs a task of a study needs, in order: trials, grids that grow, the tuned trials with the other seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lnb_bench.study.outcomes import Outcome
from lnb_bench.study.search import Knobs
from lnb_bench.study.suite import Cell, Suite, SuiteTask


def planned_cells(suite: Suite, task: SuiteTask, outcomes: list[Outcome]) -> Iterator[Cell]:
    """The runs of a task in order; what comes after the trials depends on what they, by then in ``outcomes``, gave."""
    yield from suite.tuning_cells(task)
    for _ in range(0 if suite.trials else suite.extensions):
        yield from _beyond_edges(suite, task, outcomes)
    tuned = {label: (best.cell["lr"], Knobs.of(best.cell)) for label, best in tuned_runs(suite, task, outcomes).items()}
    yield from suite.repeat_cells(task, tuned)


def _beyond_edges(suite: Suite, task: SuiteTask, outcomes: list[Outcome]) -> list[Cell]:
    """One more rate for every optimizer whose best one is the first or last that was tried."""
    cells = []
    best_runs = tuned_runs(suite, task, outcomes)
    for optimizer in suite.contestants(task):
        labels = (task.label, optimizer.label)
        tried = sorted({outcome.cell["lr"] for outcome in outcomes if outcome.labels == labels})
        best = best_runs[optimizer.label].cell["lr"] if optimizer.label in best_runs else None
        if best is not None and len(tried) > 1 and best in (tried[0], tried[-1]):
            neighbour = tried[1] if best == tried[0] else tried[-2]
            further = float(f"{best * best / neighbour:.4g}")
            if 0 < further < math.inf:
                cells.append(Cell(task, optimizer, further, suite.seeds[0], suite.schedule))
    return cells


def tuned_runs(suite: Suite, task: SuiteTask, outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """The trial of each optimizer with the best value at the end, of the first seed; none where every trial failed."""
    found: dict[str, Outcome] = {}
    for optimizer in suite.contestants(task):
        tried = [
            outcome
            for outcome in outcomes
            if outcome.labels == (task.label, optimizer.label)
            and outcome.cell["seed"] == suite.seeds[0]
            and not outcome.failure
        ]
        if tried:
            sign = 1 if tried[0].higher_is_better else -1
            found[optimizer.label] = max(tried, key=lambda outcome: sign * outcome.final)
    return found
