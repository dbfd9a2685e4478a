"""The file that describes a study.

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

A suite that searches has ``trials`` and ranges instead of grids::

    seeds = [0, 1, 2, 3, 4, 5]      # trials are made with the first, and judged are the others
    trials = 16                     # of every optimizer
    defaults = true                 # optional: one of the trials is the optimizer as it is
    reasons = true                  # optional: where LNB loses, also make the runs that show why

    [optimizers.adamw.search]       # lr, warmup, weight_decay, or a setting: a range or a list of choices
    lr = { low = 1e-4, high = 1e-2, log = true }
    warmup = [0.0, 0.1]
    betas = [[0.9, 0.95], [0.9, 0.99]]

    [questions.sides]               # optional: variants of one optimizer, compared with the first
    optimizers = ["lnb", "lnb-input-side"]
    note = "What is asked."

Short and long forms::

    [quick]                         # what --quick changes; [short] and [full] likewise
    seeds = [0]
    steps = 0.5                     # of every task's steps
    rates = 3                       # the middle ones of every grid
    tasks = ["mnist-inverted"]
    trials = 4

    [short.dear]                    # changes of some of the form's tasks only: tasks, seeds, steps, trials
    tasks = ["mnist-inverted"]
    seeds = [0, 1]
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from lnb.reading import read_text, reason
from lnb_bench.study.groups import MEASURES, SuiteFamily
from lnb_bench.study.search_file import read_question, read_search, read_trials
from lnb_bench.study.suite import Suite, SuiteError, SuiteOptimizer, SuiteTask, check_labels
from lnb_bench.study.suite_checks import (
    check_keys,
    require_labels,
    require_number,
    require_one_of,
    require_plain,
    require_type,
)
from lnb_bench.study.suite_modes import MODES, MOST_STEPS, changed, check_changes, read_seeds
from lnb_bench.training import MODELS, OPTIMIZERS, SCHEDULES, TASKS, TaskOptions
from lnb_bench.training.records import is_count, shortened

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LONGEST = 1 << 20  # bytes of a suite file
_LONGEST_LABEL = 60  # characters: pictures and files are named after labels
_MOST_EXTENSIONS = 100


def load_suite(path: Path, mode: str | None = None) -> Suite:
    """Read a suite file.

    Args:
        path: the TOML file.
        mode: one of :data:`MODES`, whose table in the file changes the rest; None for the file as it stands.

    Raises:
        SuiteError: the file cannot be read, or an entry is unknown or has no meaning; names the entry.
    """
    try:
        raw = tomllib.loads(read_text(path, _LONGEST))
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested too deeply
        raise SuiteError(f"{path}: not a TOML file ({error})") from error
    try:
        return _build(raw, path.stem, mode)
    except SuiteError as error:
        raise SuiteError(f"{path}: {error}") from error


def _build(raw: dict[str, Any], name: str, mode: str | None) -> Suite:
    check_keys(
        "the top level",
        raw,
        ("seeds", "schedule", "baseline", "extensions", "trials", "defaults", "reasons", "tasks", "optimizers", "families",
         "questions", *MODES),
    )  # fmt: skip
    if mode is not None and mode not in raw:
        raise SuiteError(f"has no table [{mode}], so --{mode} has no meaning for it")
    changes = {} if mode is None else raw[mode]
    check_changes(f"[{mode}]", changes)
    trials = read_trials(changes.get("trials", raw.get("trials", 0)))
    optimizers = tuple(_optimizer(label, entry, trials) for label, entry in _tables(raw, "optimizers").items())
    labels = [optimizer.label for optimizer in optimizers]
    tasks = tuple(_task(label, entry, labels) for label, entry in _tables(raw, "tasks").items())
    seeds = read_seeds(raw.get("seeds", [0, 1, 2]))
    if "seeds" in changes:
        seeds = read_seeds(changes["seeds"])
    schedule, baseline = raw.get("schedule", "cosine"), raw.get("baseline", "adamw")
    require_one_of("schedule", schedule, SCHEDULES)
    check_labels("baseline", [baseline], labels)
    extensions = raw.get("extensions", 0)
    if not is_count(extensions) or extensions > _MOST_EXTENSIONS:
        raise SuiteError(
            f"extensions={shortened(extensions)} must be a whole number of at least 0 and at most {_MOST_EXTENSIONS}"
        )
    known = [task.label for task in tasks]
    tables = _tables(raw, "families") if "families" in raw else {}
    families = tuple(_family(label, entry, known) for label, entry in tables.items())
    title = name if mode is None else f"{name}, {mode}"
    for flag in ("defaults", "reasons"):
        if not isinstance(raw.get(flag, False), bool):
            raise SuiteError(f"{flag}={shortened(raw[flag])} must be true or false")
    asked = _tables(raw, "questions") if "questions" in raw else {}
    groups = tuple(read_question(label, entry, labels) for label, entry in asked.items())
    suite = Suite(
        title, tasks, optimizers, seeds, schedule, baseline, families, extensions, trials, raw.get("defaults", False),
        raw.get("reasons", False), groups,
    )  # fmt: skip
    return changed(f"[{mode}]", suite, changes)


def _tables(raw: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    tables = raw.get(name)
    if not isinstance(tables, dict) or not tables or not all(isinstance(entry, dict) for entry in tables.values()):
        raise SuiteError(f"needs at least one table [{name}.LABEL]")
    for label in tables:
        if not 1 <= len(label) <= _LONGEST_LABEL or not all(c.isalnum() or c in "-_" for c in label):
            raise SuiteError(
                f"[{name}.{shortened(label)[1:-1]}]: a label is made of letters, digits, - and _, at most {_LONGEST_LABEL}"
            )
    return tables


def _optimizer(label: str, entry: dict[str, Any], trials: int) -> SuiteOptimizer:
    where = f"[optimizers.{label}]"
    check_keys(where, entry, ("optimizer", "rates", "weight_decay", "settings", "search"))
    optimizer = entry.get("optimizer", label)
    require_one_of(f"{where}: optimizer", optimizer, tuple(OPTIMIZERS))
    decay, settings = entry.get("weight_decay"), entry.get("settings", {})
    if decay is not None:
        require_number(f"{where}: weight_decay", decay, least=0)
    if not isinstance(settings, dict):
        raise SuiteError(f"{where}: settings={settings!r} must be a table")
    require_plain(f"{where}: settings", settings)
    search = read_search(where, entry.get("search")) if "search" in entry or trials else {}
    rates = () if trials and "rates" not in entry else _rates(where, entry.get("rates"))
    return SuiteOptimizer(label, optimizer, rates, decay, settings, search)


def _task(label: str, entry: dict[str, Any], optimizers: list[str]) -> SuiteTask:
    where = f"[tasks.{label}]"
    check_keys(
        where, entry, tuple(f.name for f in dataclasses.fields(SuiteTask) if f.name not in ("label", "trials", "seeds"))
    )
    task = entry.get("task", label)
    require_one_of(f"{where}: task", task, tuple(TASKS))
    for name in ("steps", "evaluations", "batch_size", "test_examples"):
        value = entry.get(name, 1 if name != "steps" else None)
        if value is None or not is_count(value) or not 1 <= value <= MOST_STEPS:
            raise SuiteError(
                f"{where}: {name}={shortened(value)} must be a whole number of at least 1 and at most {MOST_STEPS}"
            )
    options = entry.get("options", {})
    fields = {f.name: str(f.type) for f in dataclasses.fields(TaskOptions) if f.init and not f.name.startswith("_")}
    check_keys(f"{where}: options", options, tuple(name for name in fields if name != "data"))
    for name, value in options.items():
        require_type(f"{where}: {name}", value, fields[name].removesuffix(" | None"))
    require_one_of(f"{where}: model", options.get("model", "auto"), MODELS)
    if "weight_decay" in entry:
        require_number(f"{where}: weight_decay", entry["weight_decay"], least=0)
    if not isinstance(entry.get("control", False), bool):
        raise SuiteError(f"{where}: control={entry['control']!r} must be true or false")
    if "target" in entry:
        require_number(f"{where}: target", entry["target"])
    if not isinstance(entry.get("metric", ""), str):
        raise SuiteError(f"{where}: metric={shortened(entry['metric'])} must be a text")
    grids = entry.get("rates", {})
    if not isinstance(grids, dict):
        raise SuiteError(f"{where}: rates={shortened(grids)} must be a table, such as rates.adamw = [1e-3, 3e-3]")
    rates = {name: _rates(f"{where}: rates.{name}", grid) for name, grid in grids.items()}
    require_labels(where, "optimizers", entry.get("optimizers", []))
    chosen = tuple(entry.get("optimizers", []))
    for what in (rates, chosen):
        check_labels(where, list(what), optimizers)
    evaluations = min(entry.get("evaluations", 10), entry["steps"])
    shorter = _lengths(where, entry.get("shorter", []), entry["steps"])
    return SuiteTask(**{**entry, "label": label, "task": task, "evaluations": evaluations, "rates": rates,
                        "optimizers": chosen, "shorter": shorter})  # fmt: skip


def _lengths(where: str, shorter: Any, steps: int) -> tuple[int, ...]:
    whole = isinstance(shorter, list) and all(is_count(n) for n in shorter)
    if not whole or len(set(shorter)) < len(shorter) or not all(0 < n < steps for n in shorter):
        raise SuiteError(
            f"{where}: shorter={shorter!r} must be a list of different whole numbers between 0 and {steps}"
        )
    return tuple(sorted(shorter))


def _family(label: str, entry: dict[str, Any], tasks: list[str]) -> SuiteFamily:
    where = f"[families.{label}]"
    check_keys(where, entry, ("tasks", "measure", "note"))
    chosen, measure = entry.get("tasks"), entry.get("measure", "final")
    if not isinstance(chosen, list) or len(chosen) < 2:
        raise SuiteError(f"{where}: tasks={chosen!r} must be a list of at least two tasks")
    require_labels(where, "tasks", chosen)
    check_labels(where, chosen, tasks)
    require_one_of(f"{where}: measure", measure, MEASURES)
    note = entry.get("note", "")
    if not isinstance(note, str):
        raise SuiteError(f"{where}: note={note!r} must be a text")
    return SuiteFamily(label, tuple(chosen), measure, note)


def _rates(where: str, rates: Any) -> tuple[float, ...]:
    if not isinstance(rates, list) or not rates:
        raise SuiteError(f"{where}: rates={rates!r} must be a list of learning rates")
    for lr in rates:
        require_number(f"{where}: a rate", lr, above=0)
    return tuple(sorted(float(lr) for lr in rates))
