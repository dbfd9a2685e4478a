"""Run a study: only what is not there yet, each run through the one training loop, each result kept as it is made."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lnb_bench.study.clocks import CLOCKS
from lnb_bench.study.environment import environment
from lnb_bench.study.measures import compare_task
from lnb_bench.study.memory import training_peak
from lnb_bench.study.outcomes import Outcome, Store
from lnb_bench.study.planning import planned_cells
from lnb_bench.study.reasons import questions
from lnb_bench.study.suite import Cell, Suite, SuiteError, SuiteOptimizer, SuiteTask
from lnb_bench.training import Diverged, LoopConfig, OptimizerConfig, Record, Task, TaskOptions, Trainer, make_task
from lnb_bench.training.data.splits import FirstExamples
from lnb_bench.training.optimizers import known_settings, require_optimizer
from lnb_bench.training.peers import peer_version


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


def run_suite(suite: Suite, store: Store, data: Path | None = None, clock: str = "wall") -> Iterator[Progress]:
    """Make the runs of ``suite`` that ``store`` does not hold.

    Args:
        suite: the study.
        store: where results are.
        data: folder of the data; None for ``$LNB_DATA``.
        clock: what training is timed by, one of :data:`lnb_bench.study.CLOCKS`.

    Yields:
        One item per run, kept ones included.

    Raises:
        TrainingError: an optimizer's package is not installed, data are missing or damaged, or a result cannot be
            written; what was finished is kept.
    """
    for optimizer in suite.optimizers:
        require_optimizer(optimizer.optimizer)
        _require_known(optimizer)
    store.clear_leftovers()
    countdown = _Countdown(suite)
    for entry in (length for task in suite.tasks for length in task.lengths):
        part = suite.at(entry)
        task: Task | None = None
        outcomes: list[Outcome] = []
        peaks: dict[str, int | None] = {}
        cells = planned_cells(part, entry, outcomes)
        for cell in itertools.chain(cells, _explaining(suite, entry, store)):
            outcome = store.load(cell)
            kept = outcome is not None
            if outcome is None:
                task = task or _make_task(entry, data)
                if cell.optimizer.label not in peaks:
                    peaks[cell.optimizer.label] = _peak(cell, task)
                outcome = dataclasses.replace(run_cell(cell, task, clock), peak_bytes=peaks[cell.optimizer.label])
                store.save(cell, outcome)
                outcome = outcome.judged_by(entry.metric)
            outcomes.append(outcome)
            yield countdown.after(cell, outcome, kept)
        countdown.close(entry)


def _explaining(suite: Suite, entry: SuiteTask, store: Store) -> Iterator[Cell]:
    """The runs that show why LNB loses, where the suite asks for them; known when all others of the task are kept."""
    if suite.reasons and entry in suite.tasks:
        comparison = compare_task(suite, store, entry)
        if comparison is not None:
            yield from (cell for question in questions(suite, comparison) for cell in question.cells)


def _require_known(optimizer: SuiteOptimizer) -> None:
    """Require that the optimizer has every setting that the suite gives it or searches.

    Raises:
        SuiteError: it has not; names the setting.
    """
    known = known_settings(optimizer.optimizer)
    for name in (*optimizer.settings, *optimizer.search):
        if name not in ("lr", "warmup", "weight_decay", *known):
            raise SuiteError(
                f"[optimizers.{optimizer.label}]: {optimizer.optimizer} has no setting {name!r}; it has {', '.join(known)}"
            )


def _make_task(entry: SuiteTask, data: Path | None) -> Task:
    task = make_task(entry.task, TaskOptions(data=data, **entry.options))
    if entry.test_examples is None:
        return task
    return dataclasses.replace(task, test=FirstExamples(task.test, entry.test_examples))


def _configuration(cell: Cell) -> tuple[OptimizerConfig, LoopConfig]:
    optimizer, entry = cell.optimizer, cell.task
    loop = LoopConfig(
        entry.steps,
        entry.batch_size,
        cell.seed,
        cell.schedule,
        log_every=max(1, entry.steps // 20),
        evaluate_every=max(1, entry.steps // entry.evaluations),
    )
    return OptimizerConfig(optimizer.optimizer, cell.lr, cell.weight_decay, cell.settings, cell.knobs.warmup), loop


def _peak(cell: Cell, task: Task) -> int | None:
    """The memory that the cell needs; None where its first steps fail, of which its own outcome will tell."""
    try:
        return training_peak(task, *_configuration(cell))
    except (RuntimeError, MemoryError):
        return None


def run_cell(cell: Cell, task: Task, clock: str = "wall") -> Outcome:
    """One training run. A run that fails, does not learn, or whose loss is not finite has no result, and so no time.

    One contestant's failure (memory, linear algebra) does not end a study of hours: its outcome says what happened.
    """
    started = time.perf_counter()
    optimizer, config = _configuration(cell)
    random.seed(cell.seed)  # the trainer seeds torch; some peers draw from these
    np.random.seed(cell.seed)  # noqa: NPY002
    records: list[Record] = []
    failure = ""
    try:
        for record in Trainer(task, optimizer, config, CLOCKS[clock]).records():
            if not all(map(math.isfinite, record.values.values())):
                raise Diverged(f"a figure of merit is not finite at step {record.step}")
            records.append(record)
    except Diverged as error:
        records, failure = [], str(error)
    except (RuntimeError, MemoryError) as error:
        records, failure = [], f"{type(error).__name__}: {error}"
    else:
        failure = _did_not_learn(task, records)
        records = [] if failure else records
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
        environment() | {"clock": clock, "peer": peer_version(cell.optimizer.optimizer)},
    )


def _did_not_learn(task: Task, records: list[Record]) -> str:
    """What is wrong with a finite run that ends no better than it began; empty for one that learned."""
    metric = task.objective.metric
    start, *_, end = [record.values[metric] for record in records if record.split == "test"]
    if end > start if task.objective.higher_is_better else end < start:
        return ""
    return f"it did not learn: {metric} {start:.4g} before the first step, {end:.4g} at the end"


class _Countdown:
    """Counts runs and estimates the time left from the runs that are like the ones to come."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._left = {
            (task.label, optimizer.label): len(part.trials_of(task, optimizer))
            + (len(part.seeds) - 1) * (1 + suite.defaults)
            for entry in suite.tasks
            for task in entry.lengths
            for part in (suite.at(task),)
            for optimizer in suite.contestants(task)
        }
        self._walls: dict[tuple[str, str], list[float]] = {}
        self._done = 0

    def after(self, cell: Cell, outcome: Outcome, kept: bool) -> Progress:
        self._walls.setdefault(outcome.labels, []).append(outcome.wall)
        part = self._suite.at(cell.task)
        planned = cell.seed != part.seeds[0] or cell in part.trials_of(cell.task, cell.optimizer)
        left = self._left.get(outcome.labels, 0)
        self._left[outcome.labels] = max(0, left - planned)  # a grid that grows makes the study longer
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
