"""A study, and the runs that follow from it.

Protocol: every learning rate of the grid is run with the first seed. While the best value at the end is at an edge of the
grid, the grid grows there by the factor that it ends with, at most ``extensions`` times. The rate with the best value is the
tuned one, and is run with the other seeds. So every optimizer is tuned by the same rule, with runs of the same length.

A suite with ``trials`` searches instead: every optimizer gets the same number of trials, its default among them where the
suite says so, the others quasi-random (:mod:`lnb_bench.study.search`). The best is run with the other seeds, which alone are
judged: the seed that it was chosen by would flatter it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from lnb_bench.study.groups import SuiteFamily, SuiteQuestion
from lnb_bench.study.search import Knob, Knobs, draw
from lnb_bench.training import DEFAULT_LR, TrainingError


class SuiteError(TrainingError):
    """A suite file cannot be read or says something that has no meaning."""


@dataclass(frozen=True)
class SuiteTask:
    """One task of a study: what is trained, how long, and what counts as reached.

    Attributes:
        label: its name in the study.
        task: one of :data:`lnb_bench.training.TASKS`.
        steps: optimizer steps of every run.
        evaluations: evaluations of every run, besides the one at the start.
        batch_size: examples per step; None for the task's default.
        test_examples: evaluate on the first so many test examples only; None for all.
        options: fields of :class:`lnb_bench.training.TaskOptions`, without the data folder.
        weight_decay: of every optimizer in this task; None for each one's own.
        metric: the figure of merit, a name of the task's summary; None for the task's own.
        target: the value to reach; None for the best that the tuned baseline reaches.
        rates: grids by optimizer label, in place of the optimizer's.
        optimizers: the labels that take part; empty for all.
        shorter: lengths, ascending and below ``steps``, at which the task is tuned and run as well: which is the shortest
            schedule that meets the target?
        control: a variation of another task for the sake of a family: not counted among wins and losses.
        trials: of every optimizer here; None for the suite's.
        seeds: here; empty for the suite's.
    """

    label: str
    task: str
    steps: int
    evaluations: int = 10
    batch_size: int | None = None
    test_examples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weight_decay: float | None = None
    metric: str | None = None
    target: float | None = None
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    optimizers: tuple[str, ...] = ()
    shorter: tuple[int, ...] = ()
    control: bool = False
    trials: int | None = None
    seeds: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[SuiteTask, ...]:
        """The task at every length, the shortest first; the last is the task itself."""
        evaluations = self.evaluations
        return (
            *(
                dataclasses.replace(
                    self, label=f"{self.label}@{n}", steps=n, evaluations=min(evaluations, n), shorter=()
                )
                for n in self.shorter
            ),
            self,
        )


@dataclass(frozen=True)
class SuiteOptimizer:
    """One contestant: an optimizer with its settings and the grid of learning rates.

    Attributes:
        label: its name in the study.
        optimizer: one of :data:`lnb_bench.training.OPTIMIZERS`.
        rates: learning rates to try, ascending; empty where ``search`` has one.
        weight_decay: None for the optimizer's default.
        settings: further arguments of the optimizer.
        search: what trials vary, by name: ``lr``, ``warmup``, ``weight_decay``, or a setting.
    """

    label: str
    optimizer: str
    rates: tuple[float, ...]
    weight_decay: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Knob] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run, completely described: equal cells give equal metric series on one machine."""

    task: SuiteTask
    optimizer: SuiteOptimizer
    lr: float
    seed: int
    schedule: str
    knobs: Knobs = field(default_factory=Knobs)

    @property
    def weight_decay(self) -> float | None:
        """The task's, else the trial's, else the optimizer's; None for the default of the optimizer."""
        chosen = (self.task.weight_decay, self.knobs.weight_decay, self.optimizer.weight_decay)
        return next((value for value in chosen if value is not None), None)

    @property
    def settings(self) -> dict[str, Any]:
        """The trial's settings over the optimizer's."""
        return {**self.optimizer.settings, **self.knobs.settings}

    def description(self) -> dict[str, Any]:
        """What decides the metric series, for JSON; labels, grids and targets are not part of it."""
        task, optimizer = self.task, self.optimizer
        warmup = {"warmup": self.knobs.warmup} if self.knobs.warmup else {}
        return {
            "task": task.task,
            "options": task.options,
            "steps": task.steps,
            "evaluations": task.evaluations,
            "batch_size": task.batch_size,
            "test_examples": task.test_examples,
            "optimizer": optimizer.optimizer,
            "weight_decay": self.weight_decay,
            "settings": self.settings,
            "lr": self.lr,
            "seed": self.seed,
            "schedule": self.schedule,
            **warmup,
        }

    @property
    def name(self) -> str:
        """A file name: readable, and different for different descriptions. Tasks that judge the same run share it."""
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.task.task}.{self.optimizer.optimizer}.lr{self.lr:g}.seed{self.seed}.{digest}"


@dataclass(frozen=True)
class Suite:
    """A study.

    Attributes:
        name: for titles.
        tasks: in the order in which they are run.
        optimizers: likewise; they take turns.
        seeds: the first is the one that rates and knobs are tuned on.
        schedule: one of :data:`lnb_bench.training.SCHEDULES`.
        baseline: label of the optimizer that sets targets.
        families: groups of tasks to be shown side by side.
        extensions: how many rates a grid may grow by.
        trials: trials of every optimizer's search; 0: grids.
        defaults: every optimizer is also run as it is, with every seed: a trial like the others, and a column of the report.
        reasons: where LNB loses, runs that show why are made too (:mod:`lnb_bench.study.reasons`).
        questions: groups of variants.
    """

    name: str
    tasks: tuple[SuiteTask, ...]
    optimizers: tuple[SuiteOptimizer, ...]
    seeds: tuple[int, ...]
    schedule: str
    baseline: str
    families: tuple[SuiteFamily, ...] = ()
    extensions: int = 0
    trials: int = 0
    defaults: bool = False
    reasons: bool = False
    questions: tuple[SuiteQuestion, ...] = ()

    def at(self, task: SuiteTask) -> Suite:
        """The suite with the trials and seeds that hold for ``task``."""
        trials = self.trials if task.trials is None else task.trials
        return dataclasses.replace(self, trials=trials, seeds=task.seeds or self.seeds)

    def contestants(self, task: SuiteTask) -> tuple[SuiteOptimizer, ...]:
        """The optimizers that take part in ``task``."""
        return tuple(o for o in self.optimizers if not task.optimizers or o.label in task.optimizers)

    def rates(self, task: SuiteTask, optimizer: SuiteOptimizer) -> tuple[float, ...]:
        """The grid of ``optimizer`` in ``task``."""
        return task.rates.get(optimizer.label, optimizer.rates)

    @property
    def judged_seeds(self) -> tuple[int, ...]:
        """The seeds that count: after a search those that nothing was chosen by, if there are any."""
        return self.seeds[1:] if self.trials and len(self.seeds) > 1 else self.seeds

    def default_cell(self, task: SuiteTask, optimizer: SuiteOptimizer, seed: int) -> Cell:
        """The optimizer at its default rate, without warm-up."""
        return Cell(task, optimizer, DEFAULT_LR[optimizer.optimizer], seed, self.schedule)

    def trials_of(self, task: SuiteTask, optimizer: SuiteOptimizer) -> list[Cell]:
        """What is tried with the first seed, before grids grow."""
        first = self.seeds[0]
        default = [self.default_cell(task, optimizer, first)] if self.defaults else []
        if not self.trials:
            grid = [Cell(task, optimizer, lr, first, self.schedule) for lr in self.rates(task, optimizer)]
            return default + [cell for cell in grid if cell not in default]
        drawn = draw(optimizer.search, self.trials - len(default))
        return default + [
            Cell(task, optimizer, lr, first, self.schedule, Knobs(warmup, decay, settings))
            for lr, warmup, decay, settings in drawn
        ]

    def tuning_cells(self, task: SuiteTask) -> list[Cell]:
        """Every trial with the first seed; optimizers take turns, so that a busy machine disturbs all alike."""
        rows = [self.trials_of(task, optimizer) for optimizer in self.contestants(task)]
        return [cell for turn in itertools.zip_longest(*rows) for cell in turn if cell is not None]

    def repeat_cells(self, task: SuiteTask, tuned: dict[str, tuple[float, Knobs]]) -> list[Cell]:
        """The tuned trials (by label), and the defaults where they are asked for, with the other seeds."""
        cells = []
        for seed in self.seeds[1:]:
            for optimizer in self.contestants(task):
                found = []
                if optimizer.label in tuned:
                    lr, knobs = tuned[optimizer.label]
                    found.append(Cell(task, optimizer, lr, seed, self.schedule, knobs))
                if self.defaults:
                    default = self.default_cell(task, optimizer, seed)
                    found += [default] if default.name not in [cell.name for cell in found] else []
                cells += found
        return cells

    def only(self, tasks: list[str] | None, optimizers: list[str] | None) -> Suite:
        """The part of the study with these labels (None: all).

        Raises:
            SuiteError: a label is not in the study.
        """
        for wanted, known in ((tasks, self.tasks), (optimizers, self.optimizers)):
            check_labels("the suite", wanted or [], [entry.label for entry in known])
        return dataclasses.replace(
            self,
            tasks=tuple(t for t in self.tasks if tasks is None or t.label in tasks),
            optimizers=tuple(o for o in self.optimizers if optimizers is None or o.label in optimizers),
        )

    def without(self, optimizers: Collection[str]) -> Suite:
        """The study without the optimizers of these labels."""
        return dataclasses.replace(self, optimizers=tuple(o for o in self.optimizers if o.label not in optimizers))


def check_labels(where: str, wanted: list[str], known: list[str]) -> None:
    """Require that all ``wanted`` labels are ``known``; ``where`` begins the message."""
    for label in wanted:
        if label not in known:
            raise SuiteError(f"{where}: {label!r} must be one of {', '.join(known)}")
