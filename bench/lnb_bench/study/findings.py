"""Everything that a report shows: tasks compared, tasks side by side, and profiles of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lnb_bench.study.groups import SuiteQuestion
from lnb_bench.study.measures import Comparison, Estimate, compare
from lnb_bench.study.outcomes import Store
from lnb_bench.study.profiles import Profile
from lnb_bench.study.reasons import Reason, reasons
from lnb_bench.study.suite import Suite
from lnb_bench.study.untargeted import Untargeted, untargeted


@dataclass(frozen=True)
class Family:
    """Tasks that differ in one thing, such as a condition number: what it does to each optimizer.

    Attributes:
        label: its name in the suite.
        measure: ``"final"``, the value at the end, ``"steps_to_target"``, or ``"shortest_schedule"``.
        metric: what the tasks are judged by.
        tasks: labels, in order.
        budgets: steps of the runs of each task.
        lengths: of all schedules of the tasks, ascending.
        rows: by optimizer, the measure on each task; only optimizers that took part in all of them.
        note: the suite's explanation; may be empty.
    """

    label: str
    measure: str
    metric: str
    tasks: tuple[str, ...]
    budgets: tuple[int, ...]
    lengths: tuple[int, ...]
    rows: dict[str, tuple[Estimate, ...]]
    note: str = ""

    def spread(self, optimizer: str) -> float:
        """How far the measure moves over the tasks: the difference of final values, the factor between step counts."""
        medians = [estimate.median for estimate in self.rows[optimizer]]
        if self.measure == "final":
            return max(medians) - min(medians)
        return math.inf if math.isinf(max(medians)) else max(medians) / min(medians)


@dataclass(frozen=True)
class Findings:
    """What a report is made of.

    Attributes:
        comparisons: one per finished task.
        families: tasks side by side.
        profiles: of a training step; may be empty.
        reasons: of the losses, where the suite asks for them.
        questions: groups of variants.
        note: a paragraph for the top; may be empty.
        searched: rates and knobs were searched by trials.
        untargeted: finished tasks that have no target.
    """

    comparisons: tuple[Comparison, ...]
    families: tuple[Family, ...] = ()
    profiles: tuple[Profile, ...] = ()
    reasons: tuple[Reason, ...] = ()
    questions: tuple[SuiteQuestion, ...] = ()
    note: str = ""
    searched: bool = False
    untargeted: tuple[Untargeted, ...] = ()


def findings(suite: Suite, store: Store, profiles: Iterable[Profile] = (), note: str = "") -> Findings:
    """All that the finished runs of ``suite`` in ``store`` say.

    Raises:
        TrainingError: a result is damaged, or no task is finished.
    """
    comparisons = compare(suite, store)
    found = [reason for c in comparisons for reason in reasons(suite, store, c)] if suite.reasons else []
    compared = {comparison.task.label for comparison in comparisons}
    others = untargeted(suite, store, (task for task in suite.tasks if task.label not in compared))
    return Findings(
        tuple(comparisons), tuple(families(suite, comparisons)), tuple(profiles), tuple(found), suite.questions, note,
        suite.trials > 0, tuple(others),
    )  # fmt: skip


def families(suite: Suite, comparisons: Sequence[Comparison]) -> list[Family]:
    """The suite's families, of those tasks that are finished; a family of fewer than two is left out."""
    finished = {comparison.task.label: comparison for comparison in comparisons}
    found = []
    for entry in suite.families:
        chosen = [finished[label] for label in entry.tasks if label in finished]
        if len(chosen) < 2:
            continue
        by_task = [{row.optimizer: getattr(row, entry.measure) for row in comparison.rows} for comparison in chosen]
        rows = {
            optimizer: tuple(measures[optimizer] for measures in by_task)
            for optimizer in by_task[0]
            if all(measures.get(optimizer) is not None for measures in by_task)
        }
        labels = tuple(comparison.task.label for comparison in chosen)
        budgets = tuple(comparison.task.steps for comparison in chosen)
        lengths = tuple(sorted({length.steps for comparison in chosen for length in comparison.task.lengths}))
        found.append(Family(entry.label, entry.measure, chosen[0].metric, labels, budgets, lengths, rows, entry.note))
    return found
