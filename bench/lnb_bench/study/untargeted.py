"""Tasks without a target, of which the tuned baseline learnt nothing: what every optimizer ends at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lnb_bench.study.measures import Estimate, estimate, finished
from lnb_bench.study.outcomes import Outcome, Store
from lnb_bench.study.search import trial_of
from lnb_bench.study.suite import Suite, SuiteTask
from lnb_bench.study.words import show_estimate

NOTE = (
    "The baseline learnt in none of its trials, so that there is no target, no time to it, and no part in comparisons and "
    "profiles. Values at the end of equal steps, over the judged seeds whose runs have a result."
)
HEADERS = ("optimizer", "rate", "at the end", "without result", "default: at the end", "default: without result")


@dataclass(frozen=True)
class Ending:
    """Where the runs of one trial end.

    Attributes:
        final: over those that have a result; None where none has.
        failed: how many have none.
    """

    final: Estimate | None
    failed: int

    @staticmethod
    def of(runs: Sequence[Outcome]) -> Ending:
        """That of these runs."""
        good = [run.final for run in runs if not run.failure]
        return Ending(estimate(good) if good else None, len(runs) - len(good))


@dataclass(frozen=True)
class Untargeted:
    """A task without a target.

    Attributes:
        label: of the task.
        metric: what it is judged by.
        rows: of each optimizer its label, the tuned rate, and where the tuned trial and the optimizer as it is end; None of what
            was not tuned, as no trial of it learnt, or was not run.
    """

    label: str
    metric: str
    rows: tuple[tuple[str, float | None, Ending | None, Ending | None], ...]

    def lines(self) -> list[tuple[str, ...]]:
        """The rows as text, in the order of :data:`HEADERS`."""
        return [
            (optimizer, "none" if lr is None else f"{lr:g}", *self._shown(tuned), *self._shown(default))
            for optimizer, lr, tuned, default in self.rows
        ]

    def _shown(self, ending: Ending | None) -> tuple[str, str]:
        return ("", "") if ending is None else (show_estimate(self.metric, ending.final), str(ending.failed or ""))


def untargeted(suite: Suite, store: Store, tasks: Iterable[SuiteTask]) -> list[Untargeted]:
    """Those of ``tasks`` that are finished, and of which the baseline has no tuned run.

    Raises:
        TrainingError: a result is damaged.
    """
    found = []
    for task in tasks:
        own = suite.at(task)
        full = finished(own, store, task)
        if task.target is not None or full is None or own.baseline in full.tuned or not full.tuned:
            continue
        rows = []
        for optimizer in own.contestants(task):
            best, label = full.tuned.get(optimizer.label), optimizer.label
            tuned = None
            if best is not None:
                tuned = Ending.of(full.runs_of(label, trial_of(best.cell), own.judged_seeds))
            default = None
            if own.defaults:
                as_it_is = own.default_cell(task, optimizer, own.seeds[0])
                default = Ending.of(full.runs_as_it_is(own, as_it_is))
            rows.append((label, None if best is None else best.cell["lr"], tuned, default))
        found.append(Untargeted(task.label, next(iter(full.tuned.values())).metric, tuple(rows)))
    return found
