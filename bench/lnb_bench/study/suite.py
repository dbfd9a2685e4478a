"""A study, and the runs that follow from it.

Protocol: every learning rate of the grid is run with the first seed. While the best value at the end is at an edge of the
grid, the grid grows there by the factor that it ends with, at most ``extensions`` times. The rate with the best value is the
tuned one, and is run with the other seeds. So every optimizer is tuned by the same rule, with runs of the same length.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from lnb_bench.training import TrainingError

MEASURES = ("final", "steps_to_target", "shortest_schedule")


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
        rates: learning rates to try, ascending.
        weight_decay: None for the optimizer's default.
        settings: further arguments of the optimizer.
    """

    label: str
    optimizer: str
    rates: tuple[float, ...]
    weight_decay: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteFamily:
    """Tasks that differ in one thing, such as the scale of the inputs: what that does to each optimizer is a result.

    Attributes:
        label: its name in the study.
        tasks: labels, in the order in which they are shown.
        measure: what is compared, one of :data:`MEASURES`.
        note: a sentence that explains what is varied; may be empty.
    """

    label: str
    tasks: tuple[str, ...]
    measure: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One run, completely described: equal cells give equal metric series on one machine."""

    task: SuiteTask
    optimizer: SuiteOptimizer
    lr: float
    seed: int
    schedule: str

    @property
    def weight_decay(self) -> float | None:
        """The task's, else the optimizer's; None for the default of the optimizer."""
        return self.optimizer.weight_decay if self.task.weight_decay is None else self.task.weight_decay

    def description(self) -> dict[str, Any]:
        """What decides the metric series, for JSON; labels, grids and targets are not part of it."""
        task, optimizer = self.task, self.optimizer
        return {
            "task": task.task,
            "options": task.options,
            "steps": task.steps,
            "evaluations": task.evaluations,
            "batch_size": task.batch_size,
            "test_examples": task.test_examples,
            "optimizer": optimizer.optimizer,
            "weight_decay": self.weight_decay,
            "settings": optimizer.settings,
            "lr": self.lr,
            "seed": self.seed,
            "schedule": self.schedule,
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
        seeds: the first is the one that learning rates are tuned on.
        schedule: one of :data:`lnb_bench.training.SCHEDULES`.
        baseline: label of the optimizer that sets targets.
        families: groups of tasks to be shown side by side.
        extensions: how many rates a grid may grow by.
    """

    name: str
    tasks: tuple[SuiteTask, ...]
    optimizers: tuple[SuiteOptimizer, ...]
    seeds: tuple[int, ...]
    schedule: str
    baseline: str
    families: tuple[SuiteFamily, ...] = ()
    extensions: int = 0

    def contestants(self, task: SuiteTask) -> tuple[SuiteOptimizer, ...]:
        """The optimizers that take part in ``task``."""
        return tuple(o for o in self.optimizers if not task.optimizers or o.label in task.optimizers)

    def rates(self, task: SuiteTask, optimizer: SuiteOptimizer) -> tuple[float, ...]:
        """The grid of ``optimizer`` in ``task``."""
        return task.rates.get(optimizer.label, optimizer.rates)

    def tuning_cells(self, task: SuiteTask) -> list[Cell]:
        """Every rate of every grid with the first seed; optimizers take turns, so that a busy machine disturbs all alike."""
        contestants = self.contestants(task)
        longest = max(len(self.rates(task, optimizer)) for optimizer in contestants)
        return [
            Cell(task, optimizer, self.rates(task, optimizer)[i], self.seeds[0], self.schedule)
            for i in range(longest)
            for optimizer in contestants
            if i < len(self.rates(task, optimizer))
        ]

    def repeat_cells(self, task: SuiteTask, tuned: dict[str, float]) -> list[Cell]:
        """The tuned rates (by label) with the other seeds."""
        return [
            Cell(task, optimizer, tuned[optimizer.label], seed, self.schedule)
            for seed in self.seeds[1:]
            for optimizer in self.contestants(task)
            if optimizer.label in tuned
        ]

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


def check_labels(where: str, wanted: list[str], known: list[str]) -> None:
    """Require that all ``wanted`` labels are ``known``; ``where`` begins the message."""
    for label in wanted:
        if label not in known:
            raise SuiteError(f"{where}: {label!r} must be one of {', '.join(known)}")
