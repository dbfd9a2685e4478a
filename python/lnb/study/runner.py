"""Run a study: only what is not there yet, each run through the one training loop, each result kept as it is made."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lnb.study.environment import environment
from lnb.study.outcomes import Outcome, Store
from lnb.study.suite import Cell, Suite, SuiteTask
from lnb.training import Diverged, LoopConfig, OptimizerConfig, Record, Task, TaskOptions, Trainer, make_task
from lnb.training.data.splits import FirstExamples
from lnb.training.optimizers import require_optimizer


@dataclass(frozen=True)
class Progress:
    """The study after one more run.

    Attributes:
        cell: the run.
        outcome: what came of it.
        kept: whether it was there already.
        done: runs finished so far.
        total: runs of the whole study.
        seconds_left: estimate for the rest; None while nothing is known.
    """

    cell: Cell
    outcome: Outcome
    kept: bool
    done: int
    total: int
    seconds_left: float | None


def run_suite(suite: Suite, store: Store, data: Path | None = None) -> Iterator[Progress]:
    """Make the runs of ``suite`` that ``store`` does not hold.

    Args:
        suite: the study.
        store: where results are.
        data: folder of the data; None for ``$LNB_DATA``.

    Yields:
        One item per run, kept ones included.

    Raises:
        TrainingError: an optimizer's package is not installed, data are missing or damaged, or a result cannot be
            written; what was finished is kept.
    """
    for optimizer in suite.optimizers:
        require_optimizer(optimizer.optimizer)
    store.clear_leftovers()
    clock = _Clock(suite)
    for entry in suite.tasks:
        task: Task | None = None
        outcomes: list[Outcome] = []
        for cell in _cells(suite, entry, outcomes):
            outcome = store.load(cell)
            kept = outcome is not None
            if outcome is None:
                task = task or _make_task(entry, data)
                outcome = run_cell(cell, task)
                store.save(cell, outcome)
                outcome = outcome.judged_by(entry.metric)
            outcomes.append(outcome)
            yield clock.after(cell, outcome, kept)
        clock.close(entry)


def _make_task(entry: SuiteTask, data: Path | None) -> Task:
    task = make_task(entry.task, TaskOptions(data=data, **entry.options))
    if entry.test_examples is None:
        return task
    return dataclasses.replace(task, test=FirstExamples(task.test, entry.test_examples))


def _cells(suite: Suite, task: SuiteTask, outcomes: list[Outcome]) -> Iterator[Cell]:
    """The runs of a task; the repetitions depend on what the tuning runs, by then in ``outcomes``, gave."""
    yield from suite.tuning_cells(task)
    yield from suite.repeat_cells(task, tuned_rates(suite, task, outcomes))


def run_cell(cell: Cell, task: Task) -> Outcome:
    """One training run. A run that fails, or whose loss or result is not finite, has no result, and so no time.

    One contestant's failure (memory, linear algebra) does not end a study of hours: its outcome says what happened.
    """
    started = time.perf_counter()
    config = LoopConfig(
        cell.task.steps,
        cell.task.batch_size,
        cell.seed,
        cell.schedule,
        log_every=max(1, cell.task.steps // 20),
        evaluate_every=max(1, cell.task.steps // cell.task.evaluations),
    )
    optimizer = OptimizerConfig(
        cell.optimizer.optimizer, cell.lr, cell.optimizer.weight_decay, dict(cell.optimizer.settings)
    )
    random.seed(cell.seed)  # the trainer seeds torch; some peers draw from these
    np.random.seed(cell.seed)  # noqa: NPY002
    records: list[Record] = []
    failure = ""
    try:
        for record in Trainer(task, optimizer, config).records():
            if not all(map(math.isfinite, record.values.values())):
                raise Diverged(f"a figure of merit is not finite at step {record.step}")
            records.append(record)
    except Diverged as error:
        records, failure = [], str(error)
    except (RuntimeError, MemoryError) as error:
        records, failure = [], f"{type(error).__name__}: {error}"
    wall = time.perf_counter() - started
    labels = (cell.task.label, cell.optimizer.label)
    objective = task.objective
    return Outcome(
        cell.description(),
        labels,
        tuple(records),
        objective.metric,
        objective.higher_is_better,
        failure,
        wall,
        environment(),
    )


def tuned_rates(suite: Suite, task: SuiteTask, outcomes: list[Outcome]) -> dict[str, float]:
    """By optimizer label the rate with the best value at the end, first seed; absent where every rate diverged."""
    found: dict[str, float] = {}
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
            found[optimizer.label] = max(tried, key=lambda outcome: sign * outcome.final).cell["lr"]
    return found


class _Clock:
    """Counts runs and estimates the time left from the runs that are like the ones to come."""

    def __init__(self, suite: Suite) -> None:
        repeats = len(suite.seeds) - 1
        self._left = {
            (task.label, optimizer.label): len(suite.rates(task, optimizer)) + repeats
            for task in suite.tasks
            for optimizer in suite.contestants(task)
        }
        self._walls: dict[tuple[str, str], list[float]] = {}
        self._done = 0

    def after(self, cell: Cell, outcome: Outcome, kept: bool) -> Progress:
        self._walls.setdefault(outcome.labels, []).append(outcome.wall)
        self._left[outcome.labels] -= 1
        self._done += 1
        total = self._done + sum(self._left.values())
        return Progress(cell, outcome, kept, self._done, total, self._seconds_left())

    def close(self, task: SuiteTask) -> None:
        """The task is finished: optimizers that always diverged have no repetitions to come."""
        for key in self._left:
            if key[0] == task.label:
                self._left[key] = 0

    def _seconds_left(self) -> float:
        means = {key: sum(walls) / len(walls) for key, walls in self._walls.items()}
        overall = sum(means.values()) / len(means)
        return sum(count * means.get(key, overall) for key, count in self._left.items())
