"""The file that describes a study, and the runs that follow from it.

A suite is a TOML file::

    seeds = [0, 1, 2]
    schedule = "cosine"
    extensions = 2                  # optional, 0 by default: how often a grid may grow
    baseline = "adamw"              # what sets the targets

    [optimizers.adamw]              # a label; what it trains with is `optimizer`, by default the label
    rates = [3e-4, 1e-3, 3e-3]
    settings = { fused = true }

    [tasks.mnist-inverted]
    task = "mnist"
    options = { invert = true, width = 256 }
    steps = 120
    batch_size = 1000
    evaluations = 12
    target = 0.95                   # optional; else the best that the tuned baseline reaches
    shorter = [30, 60]              # optional: also tuned and run with schedules of so many steps
    rates.adamw = [1e-3, 3e-3]      # optional: another grid for this task

    [families.inputs]               # optional: tasks that differ in one thing, shown side by side
    tasks = ["mnist", "mnist-inverted"]
    measure = "final"               # or "steps_to_target", "shortest_schedule"
    note = "What differs."          # optional

    [quick]                         # what --quick changes; [full] likewise
    seeds = [0]
    steps = 0.5                     # of every task's steps
    rates = 3                       # the middle ones of every grid
    tasks = ["mnist-inverted"]

Protocol: every learning rate of the grid is run with the first seed. While the best value at the end is at an edge of the
grid, the grid grows there by the factor that it ends with, at most ``extensions`` times. The rate with the best value is the
tuned one, and is run with the other seeds. So every optimizer is tuned by the same rule, with runs of the same length.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lnb.training import MODELS, OPTIMIZERS, SCHEDULES, TASKS, TaskOptions, TrainingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODES = ("quick", "full")
MEASURES = ("final", "steps_to_target", "shortest_schedule")


class SuiteError(TrainingError):
    """A suite file cannot be read or says something that has no meaning."""


@dataclass(frozen=True)
class SuiteTask:
    """One task of a study: what is trained, how long, and what counts as reached.

    Attributes:
        label: its name in the study.
        task: one of :data:`lnb.training.TASKS`.
        steps: optimizer steps of every run.
        evaluations: evaluations of every run, besides the one at the start.
        batch_size: examples per step; None for the task's default.
        test_examples: evaluate on the first so many test examples only; None for all.
        options: fields of :class:`lnb.training.TaskOptions`, without the data folder.
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
        optimizer: one of :data:`lnb.training.OPTIMIZERS`.
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
        schedule: one of :data:`lnb.training.SCHEDULES`.
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
            _check_labels("the suite", wanted or [], [entry.label for entry in known])
        return dataclasses.replace(
            self,
            tasks=tuple(t for t in self.tasks if tasks is None or t.label in tasks),
            optimizers=tuple(o for o in self.optimizers if optimizers is None or o.label in optimizers),
        )


def load_suite(path: Path, mode: str | None = None) -> Suite:
    """Read a suite file.

    Args:
        path: the TOML file.
        mode: one of :data:`MODES`, whose table in the file changes the rest; None for the file as it stands.

    Raises:
        SuiteError: the file cannot be read, or an entry is unknown or has no meaning; names the entry.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not a TOML file ({error})") from error
    try:
        return _build(raw, path.stem, mode)
    except SuiteError as error:
        raise SuiteError(f"{path}: {error}") from error


def _build(raw: dict[str, Any], name: str, mode: str | None) -> Suite:
    _check_keys(
        "the top level", raw, ("seeds", "schedule", "baseline", "extensions", "tasks", "optimizers", "families", *MODES)
    )
    if mode is not None and mode not in raw:
        raise SuiteError(f"has no table [{mode}], so --{mode} has no meaning for it")
    changes = {} if mode is None else raw[mode]
    _check_keys(f"[{mode}]", changes, ("seeds", "steps", "rates", "tasks", "optimizers"))
    optimizers = tuple(_optimizer(label, entry) for label, entry in _tables(raw, "optimizers").items())
    labels = [optimizer.label for optimizer in optimizers]
    tasks = tuple(_task(label, entry, labels) for label, entry in _tables(raw, "tasks").items())
    seeds = _seeds(changes.get("seeds", raw.get("seeds", [0, 1, 2])))
    schedule, baseline = raw.get("schedule", "cosine"), raw.get("baseline", "adamw")
    if schedule not in SCHEDULES:
        raise SuiteError(f"schedule={schedule!r} must be one of {', '.join(SCHEDULES)}")
    _check_labels("baseline", [baseline], labels)
    extensions = raw.get("extensions", 0)
    if not isinstance(extensions, int) or isinstance(extensions, bool) or extensions < 0:
        raise SuiteError(f"extensions={extensions!r} must be a whole number of at least 0")
    known = [task.label for task in tasks]
    families = tuple(_family(label, entry, known) for label, entry in raw.get("families", {}).items())
    title = name if mode is None else f"{name}, {mode}"
    suite = Suite(title, tasks, optimizers, seeds, schedule, baseline, families, extensions)
    suite = suite.only(changes.get("tasks"), changes.get("optimizers"))
    return _scaled(suite, changes.get("steps", 1.0), changes.get("rates"))


def _scaled(suite: Suite, steps: Any, rates: Any) -> Suite:
    _require_number("steps", steps, above=0)
    if rates is not None and (not isinstance(rates, int) or rates < 1):
        raise SuiteError(f"rates={rates!r} must be a whole number of at least 1")

    def middle(grid: tuple[float, ...]) -> tuple[float, ...]:
        if rates is None or rates >= len(grid):
            return grid
        start = (len(grid) - rates) // 2
        return grid[start : start + rates]

    tasks = tuple(
        dataclasses.replace(
            task,
            steps=max(task.evaluations, round(task.steps * steps)),
            shorter=tuple(max(1, round(n * steps)) for n in task.shorter),
            rates={label: middle(grid) for label, grid in task.rates.items()},
        )
        for task in suite.tasks
    )
    optimizers = tuple(dataclasses.replace(o, rates=middle(o.rates)) for o in suite.optimizers)
    return dataclasses.replace(suite, tasks=tasks, optimizers=optimizers)


def _tables(raw: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    tables = raw.get(name)
    if not isinstance(tables, dict) or not tables or not all(isinstance(entry, dict) for entry in tables.values()):
        raise SuiteError(f"needs at least one table [{name}.LABEL]")
    for label in tables:
        if not label or not all(c.isalnum() or c in "-_" for c in label):
            raise SuiteError(f"[{name}.{label}]: a label is made of letters, digits, - and _")
    return tables


def _optimizer(label: str, entry: dict[str, Any]) -> SuiteOptimizer:
    where = f"[optimizers.{label}]"
    _check_keys(where, entry, ("optimizer", "rates", "weight_decay", "settings"))
    optimizer = entry.get("optimizer", label)
    if optimizer not in OPTIMIZERS:
        raise SuiteError(f"{where}: optimizer={optimizer!r} must be one of {', '.join(OPTIMIZERS)}")
    decay, settings = entry.get("weight_decay"), entry.get("settings", {})
    if decay is not None:
        _require_number(f"{where}: weight_decay", decay, least=0)
    if not isinstance(settings, dict):
        raise SuiteError(f"{where}: settings={settings!r} must be a table")
    return SuiteOptimizer(label, optimizer, _rates(where, entry.get("rates")), decay, settings)


def _task(label: str, entry: dict[str, Any], optimizers: list[str]) -> SuiteTask:
    where = f"[tasks.{label}]"
    _check_keys(where, entry, tuple(f.name for f in dataclasses.fields(SuiteTask) if f.name != "label"))
    task = entry.get("task", label)
    if task not in TASKS:
        raise SuiteError(f"{where}: task={task!r} must be one of {', '.join(TASKS)}")
    for name in ("steps", "evaluations", "batch_size", "test_examples"):
        value = entry.get(name, 1 if name != "steps" else None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SuiteError(f"{where}: {name}={value!r} must be a whole number of at least 1")
    options = entry.get("options", {})
    known = [f.name for f in dataclasses.fields(TaskOptions) if f.init and not f.name.startswith("_")]
    _check_keys(f"{where}: options", options, tuple(name for name in known if name != "data"))
    if options.get("model", "auto") not in MODELS:
        raise SuiteError(f"{where}: model={options['model']!r} must be one of {', '.join(MODELS)}")
    if "weight_decay" in entry:
        _require_number(f"{where}: weight_decay", entry["weight_decay"], least=0)
    if not isinstance(entry.get("control", False), bool):
        raise SuiteError(f"{where}: control={entry['control']!r} must be true or false")
    if "target" in entry:
        _require_number(f"{where}: target", entry["target"])
    rates = {name: _rates(f"{where}: rates.{name}", grid) for name, grid in entry.get("rates", {}).items()}
    chosen = tuple(entry.get("optimizers", ()))
    for what in (rates, chosen):
        _check_labels(where, list(what), optimizers)
    evaluations = min(entry.get("evaluations", 10), entry["steps"])
    shorter = _lengths(where, entry.get("shorter", []), entry["steps"])
    return SuiteTask(**{**entry, "label": label, "task": task, "evaluations": evaluations, "rates": rates,
                        "optimizers": chosen, "shorter": shorter})  # fmt: skip


def _lengths(where: str, shorter: Any, steps: int) -> tuple[int, ...]:
    whole = isinstance(shorter, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in shorter)
    if not whole or len(set(shorter)) < len(shorter) or not all(0 < n < steps for n in shorter):
        raise SuiteError(
            f"{where}: shorter={shorter!r} must be a list of different whole numbers between 0 and {steps}"
        )
    return tuple(sorted(shorter))


def _family(label: str, entry: dict[str, Any], tasks: list[str]) -> SuiteFamily:
    where = f"[families.{label}]"
    _check_keys(where, entry, ("tasks", "measure", "note"))
    chosen, measure = entry.get("tasks"), entry.get("measure", "final")
    if not isinstance(chosen, list) or len(chosen) < 2:
        raise SuiteError(f"{where}: tasks={chosen!r} must be a list of at least two tasks")
    _check_labels(where, chosen, tasks)
    if measure not in MEASURES:
        raise SuiteError(f"{where}: measure={measure!r} must be one of {', '.join(MEASURES)}")
    note = entry.get("note", "")
    if not isinstance(note, str):
        raise SuiteError(f"{where}: note={note!r} must be a text")
    return SuiteFamily(label, tuple(chosen), measure, note)


def _rates(where: str, rates: Any) -> tuple[float, ...]:
    if not isinstance(rates, list) or not rates:
        raise SuiteError(f"{where}: rates={rates!r} must be a list of learning rates")
    for lr in rates:
        _require_number(f"{where}: a rate", lr, above=0)
    return tuple(sorted(float(lr) for lr in rates))


def _seeds(seeds: Any) -> tuple[int, ...]:
    valid = isinstance(seeds, list) and seeds and all(isinstance(s, int) and s >= 0 for s in seeds)
    if not valid or len(set(seeds)) < len(seeds):
        raise SuiteError(f"seeds={seeds!r} must be a list of different whole numbers")
    return tuple(seeds)


def _require_number(what: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= above or value < least:
        bound = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
        raise SuiteError(f"{what}={value!r} must be a finite number{bound}")


def _check_keys(where: str, table: Any, known: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise SuiteError(f"{where} must be a table, not {table!r}")
    for key in table:
        if key not in known:
            raise SuiteError(f"{where}: unknown entry {key!r}; known are {', '.join(known)}")


def _check_labels(where: str, wanted: list[str], known: list[str]) -> None:
    for label in wanted:
        if label not in known:
            raise SuiteError(f"{where}: {label!r} must be one of {', '.join(known)}")
