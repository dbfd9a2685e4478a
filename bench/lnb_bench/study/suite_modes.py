"""Short and long forms of a suite: what the tables ``[quick]``, ``[short]`` and ``[full]`` change."""

from __future__ import annotations

import dataclasses
from typing import Any

from lnb_bench.study.search_file import read_trials
from lnb_bench.study.suite import Suite, SuiteError, check_labels
from lnb_bench.study.suite_checks import check_keys, require_labels, require_number
from lnb_bench.training.records import is_count, shortened

MODES = ("quick", "short", "full")
MOST_STEPS = 10**9


def check_changes(where: str, changes: dict[str, Any]) -> None:
    """Require that the table of a form has no unknown entry.

    Raises:
        SuiteError: it has one.
    """
    check_keys(where, changes, ("seeds", "steps", "rates", "trials", "tasks", "optimizers", "dear"))


def changed(where: str, suite: Suite, changes: dict[str, Any]) -> Suite:
    """The suite, which has the form's trials and seeds, with all else that the table ``changes`` says.

    Raises:
        SuiteError: an entry has no meaning; ``where`` begins the message.
    """
    for entry in ("tasks", "optimizers"):
        require_labels(where, entry, changes.get(entry, []))
    suite = suite.only(changes.get("tasks"), changes.get("optimizers"))
    steps, rates = changes.get("steps", 1.0), changes.get("rates")
    if "dear" not in changes:
        return scaled(suite, steps, rates)
    inside, dear = f"{where[:-1]}.dear]", changes["dear"]
    check_keys(inside, dear, ("tasks", "seeds", "steps", "trials"))
    require_labels(inside, "tasks", dear.get("tasks"))
    check_labels(inside, dear["tasks"], [task.label for task in suite.tasks])
    trials = read_trials(dear["trials"]) if "trials" in dear else None
    if trials and not suite.trials:
        raise SuiteError(f"{inside}: trials={trials} has no meaning for a suite of grids")
    seeds = read_seeds(dear["seeds"]) if "seeds" in dear else ()
    less = scaled(suite.only(dear["tasks"], None), dear.get("steps", steps), rates)
    parts = {task.label: dataclasses.replace(task, trials=trials, seeds=seeds) for task in less.tasks}
    suite = scaled(suite, steps, rates)
    return dataclasses.replace(suite, tasks=tuple(parts.get(task.label, task) for task in suite.tasks))


def scaled(suite: Suite, steps: Any, rates: Any) -> Suite:
    require_number("steps", steps, above=0)
    longest = max(task.steps for task in suite.tasks) if suite.tasks else 0
    if longest * steps > MOST_STEPS:
        raise SuiteError(f"steps={shortened(steps)} makes {longest} steps more than {MOST_STEPS}")
    if rates is not None and (not is_count(rates) or rates < 1):
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


def read_seeds(seeds: Any) -> tuple[int, ...]:
    valid = isinstance(seeds, list) and seeds and all(is_count(s) and s < 2**32 for s in seeds)  # what NumPy takes
    if not valid or len(set(seeds)) < len(seeds):
        raise SuiteError(f"seeds={shortened(seeds)} must be a list of different whole numbers below {2**32}")
    return tuple(seeds)
