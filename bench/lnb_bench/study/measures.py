"""The measures that optimizers are compared by, from the finished runs of a study.

*Time to target*: training time (evaluation excluded) at the first evaluation that is at least as good as the target;
infinite for a run that never is. *Equal time*: the value at the last evaluation within the training time of the fastest
optimizer of the task. *Equal steps*: the value at the end. *Rate width*: the factor between the largest and the smallest
rate of the grid (or of the trials) whose result is within 2 % of the best. *Shortest schedule*: the least of the task's
lengths whose run, at the rate that is tuned for that length, meets the target; infinite where none does. Per optimizer the
median over the seeds counts, with the central 90 % of the medians of resampled seeds (bootstrap; exact, by listing all
resamples, for up to six seeds).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lnb_bench.study.outcomes import Outcome, Store
from lnb_bench.study.planning import planned_cells, tuned_runs
from lnb_bench.study.search import Knobs, trial_of
from lnb_bench.study.suite import Cell, Suite, SuiteOptimizer, SuiteTask
from lnb_bench.training import TrainingError

NEAR = 0.02
EDGE = 0.05  # of a searched range, on its own scale
COVERAGE = 0.9
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A median over seeds with its interval; infinite where the event never came."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One optimizer on one task; measures are None where every run failed.

    Attributes:
        optimizer: its label.
        lr: the tuned rate.
        runs: finished runs at that rate, one per seed.
        failed: how many runs of the optimizer, at any rate, gave no result.
        seconds_to_target: see the module.
        steps_to_target: likewise, in steps.
        epochs_to_target: likewise, in passes over the data.
        shortest_schedule: likewise.
        at_equal_time: likewise.
        final: the value at the end.
        milliseconds: of one training step.
        peak_bytes: most memory that its training steps needed; None where that was not measured.
        rate_width: likewise.
        rate_at_edge: the tuned rate is the first or the last of the grid, or in the outer twentieth of a searched range: a
            better one may lie outside.
        knobs: what else the tuned trial sets, over the optimizer's settings; None where nothing was tuned.
        default: the same measures of the optimizer as it is; None where that was not run.
    """

    optimizer: str
    lr: float | None
    runs: tuple[Outcome, ...]
    failed: int
    seconds_to_target: Estimate | None = None
    steps_to_target: Estimate | None = None
    epochs_to_target: Estimate | None = None
    shortest_schedule: Estimate | None = None
    at_equal_time: Estimate | None = None
    final: Estimate | None = None
    milliseconds: Estimate | None = None
    peak_bytes: int | None = None
    rate_width: float | None = None
    rate_at_edge: bool = False
    knobs: Knobs | None = None
    default: Row | None = None


@dataclass(frozen=True)
class Comparison:
    """All optimizers on one task.

    Attributes:
        task: what was trained.
        metric: what it is judged by.
        higher_is_better: its sense.
        target: the value to reach.
        baseline: label of the optimizer that set it (where the suite gives no target).
        rows: one per optimizer, in the suite's order.
        tuning: results of the trials on the first seed: by optimizer, the rate and the final value (NaN: diverged).
        searched: trials also differ in other things than the rate.
    """

    task: SuiteTask
    metric: str
    higher_is_better: bool
    target: float
    baseline: str
    rows: tuple[Row, ...]
    tuning: dict[str, list[tuple[float, float]]]
    searched: bool = False


def compare(suite: Suite, store: Store) -> list[Comparison]:
    """Compare the finished runs; tasks of which some tuning run is missing are left out.

    Raises:
        TrainingError: a result is damaged, or no task is finished.
    """
    comparisons = [comparison for task in suite.tasks if (comparison := compare_task(suite, store, task)) is not None]
    if not comparisons:
        raise TrainingError(
            f"{store.path}: no task of the suite {suite.name!r} is finished there; run `lnb-bench run` with the same suite, "
            f"the same --quick or --full, and this folder as --out"
        )
    return comparisons


@dataclass(frozen=True)
class Finished:
    """A task at one length: its runs, and the tuned trials by optimizer."""

    outcomes: list[Outcome]
    tuned: dict[str, Outcome]

    @classmethod
    def of(cls, suite: Suite, store: Store, task: SuiteTask) -> Finished | None:
        """What ``store`` has; None where a tuning run is missing."""
        outcomes: list[Outcome] = []
        for cell in planned_cells(suite, task, outcomes):
            outcome = store.load(cell)
            if outcome is not None:
                outcomes.append(outcome)
            elif cell.seed == suite.seeds[0]:
                return None
        return cls(outcomes, tuned_runs(suite, task, outcomes))

    def runs_of(self, optimizer: str, trial: str | None, seeds: tuple[int, ...]) -> list[Outcome]:
        """The runs of a trial with these seeds, failed ones among them."""
        return [
            outcome
            for outcome in self.outcomes
            if outcome.labels[1] == optimizer and trial_of(outcome.cell) == trial and outcome.cell["seed"] in seeds
        ]

    def runs_as_it_is(self, suite: Suite, cell: Cell) -> list[Outcome]:
        """The runs with judged seeds of an optimizer as it is, of which ``cell`` is one; failed ones among them."""
        return self.runs_of(cell.optimizer.label, trial_of(cell.description()), suite.judged_seeds)

    def tuned_runs(self, optimizer: str, seeds: tuple[int, ...]) -> list[Outcome]:
        """The runs of the tuned trial with these seeds that have a result."""
        best = self.tuned.get(optimizer)
        runs = self.runs_of(optimizer, trial_of(best.cell), seeds) if best is not None else []
        return [run for run in runs if not run.failure]


def finished(suite: Suite, store: Store, task: SuiteTask) -> Finished | None:
    """The task at its full length; None where it is not finished."""
    return Finished.of(suite, store, task.lengths[-1])


def _shortest_schedule(
    lengths: list[Finished], optimizer: str, seeds: tuple[int, ...], target: float
) -> Estimate | None:
    """Over the seeds that were run at the full length."""
    steps = []
    for seed in seeds:
        runs = [length.tuned_runs(optimizer, (seed,)) for length in lengths]
        if runs[-1]:
            steps.append(
                min(
                    (
                        float(run.cell["steps"])
                        for found in runs
                        for run in found
                        if math.isfinite(first_hit(run, target)[0])
                    ),
                    default=math.inf,
                )
            )
    return estimate(steps) if steps else None


def compare_task(suite: Suite, store: Store, task: SuiteTask) -> Comparison | None:
    """The comparison of one task; None where it is not finished, or every run of the baseline failed."""
    suite = suite.at(task)
    lengths = [Finished.of(suite, store, length) for length in task.lengths]
    found = [length for length in lengths if length is not None]
    if len(found) < len(lengths) or not found[-1].tuned:
        return None
    full, seeds = found[-1], suite.judged_seeds
    tuned = {o.label: full.tuned_runs(o.label, seeds) for o in suite.contestants(task)}
    one = next(iter(full.tuned.values()))
    target = _target(task, tuned.get(suite.baseline, []))
    times = [statistics.median(run.records[-1].seconds for run in runs) for runs in tuned.values() if runs]
    if target is None or not times:
        return None
    rows, grids = [], {}
    for optimizer in suite.contestants(task):
        label = optimizer.label
        mine = [outcome for outcome in full.outcomes if outcome.labels[1] == label]
        tried = [outcome for outcome in mine if outcome.cell["seed"] == suite.seeds[0]]
        grids[label] = sorted((outcome.cell["lr"], outcome.final) for outcome in tried)
        best = full.tuned.get(label)
        row = Row(
            label, None if best is None else best.cell["lr"], tuple(tuned[label]), sum(bool(o.failure) for o in mine)
        )
        default = None
        if suite.defaults:
            as_it_is = suite.default_cell(task, optimizer, suite.seeds[0])
            runs = full.runs_as_it_is(suite, as_it_is)
            good = tuple(run for run in runs if not run.failure)
            default = _measured(Row(label, as_it_is.lr, good, len(runs) - len(good)), target, min(times))
        row = dataclasses.replace(
            _measured(row, target, min(times)),
            default=default,
            shortest_schedule=_shortest_schedule(found, label, seeds, target),
        )
        rows.append(row if best is None else _with_trials(row, best, tried, optimizer))
    searched = suite.trials > 0
    return Comparison(task, one.metric, one.higher_is_better, target, suite.baseline, tuple(rows), grids, searched)


def _target(task: SuiteTask, baseline: list[Outcome]) -> float | None:
    """The suite's target, else the median over seeds of the best value that the tuned baseline reached."""
    if task.target is not None:
        return task.target
    return best_reached(baseline) if baseline else None


def best_reached(runs: Sequence[Outcome]) -> float:
    """The median over runs, at least one, of the best value of any evaluation."""
    best = max if runs[0].higher_is_better else min
    return statistics.median(best(value for _, _, value in run.curve) for run in runs)


def _measured(row: Row, target: float, budget: float) -> Row:
    """The row with the measures of its runs; as it is where it has none."""
    runs = row.runs
    if not runs:
        return row
    hits = [first_hit(run, target) for run in runs]
    return dataclasses.replace(
        row,
        seconds_to_target=estimate([seconds for _, seconds, _ in hits]),
        steps_to_target=estimate([steps for steps, _, _ in hits]),
        epochs_to_target=estimate([epochs for _, _, epochs in hits]),
        at_equal_time=estimate([_value_at(run, budget) for run in runs]),
        final=estimate([run.final for run in runs]),
        milliseconds=estimate([1e3 * run.records[-1].seconds / run.records[-1].step for run in runs]),
        peak_bytes=max((run.peak_bytes for run in runs if run.peak_bytes is not None), default=None),
    )


def _with_trials(row: Row, best: Outcome, tried: list[Outcome], optimizer: SuiteOptimizer) -> Row:
    """The row with what the trials of the first seed say of its rate."""
    rates = sorted(outcome.cell["lr"] for outcome in tried)
    near = [o.cell["lr"] for o in tried if not o.failure and _is_near(o, best.final)]
    knob = optimizer.search.get("lr")
    edge = len(rates) > 1 and best.cell["lr"] in (rates[0], rates[-1])
    if knob is not None and not knob.choices:
        edge = not EDGE < knob.place(best.cell["lr"]) < 1 - EDGE
    knobs = Knobs.of(best.cell)
    chosen = {name: value for name, value in knobs.settings.items() if optimizer.settings.get(name) != value}
    knobs = dataclasses.replace(knobs, settings=chosen)
    return dataclasses.replace(row, rate_width=max(near) / min(near), rate_at_edge=edge, knobs=knobs)


def first_hit(run: Outcome, target: float) -> tuple[float, float, float]:
    """Steps, seconds and epochs at the first evaluation that meets the target; the start does not count."""
    for record in run.records:
        if record.split == "test" and record.step > 0 and run.is_better(record.values[run.metric], target):
            return record.step, record.seconds, record.epoch
    return math.inf, math.inf, math.inf


def _value_at(run: Outcome, seconds: float) -> float:
    """The value at the last evaluation within ``seconds`` of training; a hair more counts as within."""
    return [value for _, spent, value in run.curve if spent <= 1.001 * seconds][-1]


def _is_near(outcome: Outcome, best: float) -> bool:
    slack = NEAR * abs(best)
    return outcome.is_better(outcome.final, best - slack if outcome.higher_is_better else best + slack)


def estimate(values: Sequence[float]) -> Estimate:
    """Median and bootstrap interval."""
    if len(values) <= 6:
        medians = sorted(statistics.median(sample) for sample in itertools.product(values, repeat=len(values)))
    else:
        draws = np.random.default_rng(0).choice(np.asarray(values, np.float64), (RESAMPLES, len(values)))
        medians = sorted(map(float, np.median(draws, axis=1)))
    tail = (1 - COVERAGE) / 2
    last = len(medians) - 1
    return Estimate(statistics.median(values), medians[round(tail * last)], medians[round((1 - tail) * last)])
