"""Wins and losses in plain language: what a comparison says, and where the difference comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lnb_bench.study.clocks import CLOCK_WORDS
from lnb_bench.study.measures import Comparison, Estimate, Row
from lnb_bench.study.search import Knobs

WIN, TIE, LOSS = "win", "tie", "loss"
PERCENT = ("accuracy", "pixel_accuracy", "mean_iou")
METRICS = {
    "accuracy": "accuracy",
    "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mean IoU",
    "loss": "loss",
    "relative_error": "relative error",
    "squared_error": "squared error",
}


@dataclass(frozen=True)
class Duel:
    """LNB against one other optimizer on one task, judged by the time to target.

    Attributes:
        task: label of the task.
        ours: label of the LNB contestant.
        other: label of the other.
        verdict: :data:`WIN` or :data:`LOSS` where the intervals do not overlap, else :data:`TIE`.
        time_ratio: LNB's median time to target over the other's; NaN where neither got there.
        sentence: the same in words.
    """

    task: str
    ours: str
    other: str
    verdict: str
    time_ratio: float
    sentence: str


def is_ours(comparison: Comparison, row: Row) -> bool:
    """Whether the row is an LNB variant."""
    return any(str(run.cell["optimizer"]).startswith("lnb") for run in row.runs)


def duels(comparison: Comparison) -> list[Duel]:
    """The first LNB contestant against every optimizer that is none; no duels in a control."""
    if comparison.task.control:
        return []
    mine = next((row for row in comparison.rows if is_ours(comparison, row)), None)
    if mine is None:
        return []
    return [_duel(comparison, mine, row) for row in comparison.rows if row.runs and not is_ours(comparison, row)]


def _duel(comparison: Comparison, mine: Row, other: Row) -> Duel:
    ours, theirs = mine.seconds_to_target, other.seconds_to_target
    if ours is None or theirs is None:  # duels() takes rows with runs, and these have measures
        raise ValueError("a row without runs cannot be compared")
    verdict = WIN if ours.high < theirs.low else LOSS if ours.low > theirs.high else TIE
    names = f"{mine.optimizer} against {other.optimizer}"
    target = f"{METRICS.get(comparison.metric, comparison.metric)} {show(comparison.metric, comparison.target)}"
    if math.isinf(ours.median) and math.isinf(theirs.median):
        text = f"neither reached the target ({target})"
        return Duel(comparison.task.label, mine.optimizer, other.optimizer, TIE, math.nan, f"{names}: {text}.")
    if math.isinf(ours.median):
        ended = show_estimate(comparison.metric, mine.final)
        text = (
            f"{mine.optimizer} did not reach the target ({target}) and ended at {ended}, {other.optimizer} reached it in "
            f"{theirs.median:.3g} s"
        )
        ratio = math.inf
    elif math.isinf(theirs.median):
        text = f"{mine.optimizer} reached the target ({target}) in {ours.median:.3g} s, {other.optimizer} did not"
        ratio = 0.0
    else:
        ratio = ours.median / theirs.median
        text = f"{_factor(ratio)} as long to the target ({target}){_why(mine, other)}"
    text += _late(comparison, mine) + _late(comparison, other)
    clear = "" if verdict != TIE else "; the intervals overlap, so the difference is not clear"
    return Duel(comparison.task.label, mine.optimizer, other.optimizer, verdict, ratio, f"{names}: {text}{clear}.")


def _factor(ratio: float) -> str:
    return f"{ratio:.2f} times"


def _late(comparison: Comparison, row: Row) -> str:
    """A target that is met only where the rate is gone says as much of the schedule's length as of the optimizer."""
    reached = row.steps_to_target
    late = reached is not None and reached.median == comparison.task.steps
    return f"; {row.optimizer} got there with the last step of its schedule" if late else ""


def _why(mine: Row, other: Row) -> str:
    """Time is steps times time per step: say both factors."""
    if not (mine.steps_to_target and other.steps_to_target and mine.milliseconds and other.milliseconds):
        return ""
    steps = mine.steps_to_target.median / other.steps_to_target.median
    cost = mine.milliseconds.median / other.milliseconds.median
    return f": {steps:.2f} times the steps, each of which takes {cost:.2f} times as long"


def show(metric: str, value: float) -> str:
    """A value of a figure of merit."""
    if math.isnan(value):
        return "no result"
    return f"{value:.2%}" if metric in PERCENT else f"{value:.3g}"


def show_estimate(metric: str | None, estimate: Estimate | None) -> str:
    """Median and interval; ``metric`` None: a plain number, in which infinite means never."""
    if estimate is None:
        return "no result"

    def one(value: float) -> str:
        if metric is not None:
            return show(metric, value)
        return "never" if math.isinf(value) else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    low, high = one(estimate.low), one(estimate.high)
    return one(estimate.median) if low == high else f"{one(estimate.median)} ({low} to {high})"


OVERVIEW = ("task", "first at the target", "best at equal time", "best at the end", "places of the first LNB")


def overview(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Who is ahead on each task by medians, and LNB's places there, in the order of :data:`OVERVIEW`."""
    lines = []
    for comparison in comparisons:
        if comparison.task.control:
            continue
        metric, sign = comparison.metric, -1 if comparison.higher_is_better else 1
        rows = [row for row in comparison.rows if row.seconds_to_target and row.at_equal_time and row.final]
        ours = next((row.optimizer for row in rows if is_ours(comparison, row)), None)
        firsts, places = [], []
        for measures, direction, shown_as in (
            ({row.optimizer: row.seconds_to_target for row in rows}, 1, None),
            ({row.optimizer: row.at_equal_time for row in rows}, sign, metric),
            ({row.optimizer: row.final for row in rows}, sign, metric),
        ):
            medians = {name: direction * measure.median for name, measure in measures.items() if measure is not None}
            order = sorted(medians, key=lambda name: medians[name])
            best = direction * medians[order[0]]
            value = f"{best:.3g} s" if shown_as is None else show(shown_as, best)
            firsts.append("none" if math.isinf(best) else f"{order[0]}, {value}")
            reached = ours is not None and math.isfinite(medians[ours])
            places.append(str(1 + sum(m < medians[ours] for m in medians.values())) if ours and reached else "none")
        lines.append((comparison.task.label, *firsts, f"{', '.join(places)} of {len(rows)}"))
    return lines


def summary(comparisons: Sequence[Comparison]) -> str:
    """All verdicts counted."""
    verdicts = [duel.verdict for comparison in comparisons for duel in duels(comparison)]
    wins, ties, losses = (verdicts.count(verdict) for verdict in (WIN, TIE, LOSS))
    return f"{len(verdicts)} comparisons by time to target: {wins} wins, {ties} without a clear difference, {losses} losses."


HEADERS = (
    "optimizer",
    "lr",
    "s to target",
    "steps to target",
    "epochs to target",
    "at equal time",
    "at the end",
    "ms/step",
    "peak MB",
    "lr range",
)


DEFAULT_HEADERS = ("default: s to target", "default: steps to target", "default: at the end", "tuned to")


def headers(comparison: Comparison) -> tuple[str, ...]:
    """Column titles: :data:`HEADERS`, and what was measured of the optimizers as they are."""
    return (*HEADERS, *DEFAULT_HEADERS) if any(row.default for row in comparison.rows) else HEADERS


def _default(comparison: Comparison, row: Row) -> tuple[str, ...]:
    """The columns of :data:`DEFAULT_HEADERS`; empty where no optimizer has them."""
    if not any(other.default for other in comparison.rows):
        return ()
    default = row.default
    shown = ("", "", "")
    if default is not None:
        reached = (show_estimate(None, default.seconds_to_target), show_estimate(None, default.steps_to_target))
        shown = (*reached, show_estimate(comparison.metric, default.final))
    return (*shown, "" if row.knobs is None else _knobs(row.knobs))


def _knobs(knobs: Knobs) -> str:
    parts = [f"warm-up {knobs.warmup:.0%}"] if knobs.warmup else []
    parts += [f"weight decay {knobs.weight_decay:g}"] if knobs.weight_decay is not None else []
    parts += [f"{name} {value!r}" for name, value in knobs.settings.items()]
    return "; ".join(parts) or "as it is"


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """The rows of a comparison as text, in the order of :func:`headers`."""
    metric = comparison.metric
    lines: list[tuple[str, ...]] = []
    for row in comparison.rows:
        rate = "none" if row.lr is None else f"{row.lr:g}" + (" (edge)" if row.rate_at_edge else "")
        width = "" if row.rate_width is None else f"x{row.rate_width:.3g}"
        note = f", {row.failed} without result" if row.failed else ""
        lines.append(
            (
                row.optimizer,
                rate,
                show_estimate(None, row.seconds_to_target),
                show_estimate(None, row.steps_to_target),
                show_estimate(None, row.epochs_to_target),
                show_estimate(metric, row.at_equal_time),
                show_estimate(metric, row.final),
                show_estimate(None, row.milliseconds),
                "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
                width + note,
                *_default(comparison, row),
            )
        )
    return lines


def machines(comparisons: Sequence[Comparison]) -> list[str]:
    """The machines and versions that the runs were made with."""
    found: dict[str, None] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            for run in row.runs:
                where = run.environment
                versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
                threads = f"{where['threads']} thread" + ("s" if where["threads"] != 1 else "")
                clock = CLOCK_WORDS[where["clock"]]
                found[f"{where['processor']}, {where['cores']} cores, {threads}, {clock}; {versions}"] = None
    return list(found)


def days(comparisons: Sequence[Comparison]) -> str:
    """The day on which the runs were made, or the first and the last."""
    found = sorted({run.environment["date"][:10] for each in comparisons for row in each.rows for run in row.runs})
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "no day"


def caution(comparisons: Sequence[Comparison]) -> str:
    """What a reader must know where runs of several machines stand side by side; else empty."""
    count = len(machines(comparisons))
    return "" if count == 1 else f"Runs of {count} machines or settings stand side by side: their times do not compare."


PROTOCOL = (
    "Every learning rate of a grid is run with the first seed; a grid whose best value at the end is at its edge grows "
    "there, by the suite's limit. The best rate is run with the other seeds. All runs of a task have the same steps, batch "
    "size and schedule. Values are on the test split. Times are training times, without evaluation. Medians over seeds, "
    "with the central 90 % of the medians of resampled seeds in brackets. A run that fails, diverges or ends no better than "
    "it began has no result, and so no time. 'edge': the best rate is at the end of what was tried, so a better one may lie "
    "outside. 'peak MB': most memory live at one time in training steps, model included, as torch allocates it. 'lr range': "
    "factor between the largest and smallest rate tried within 2 % of the best."
)


SEARCHED = (
    "Every optimizer has the same number of trials, its default among them; the others are quasi-random points in the ranges "
    "that the suite gives for its rate, warm-up and a knob of its own. They are run with the first seed. The trial with the "
    "best value at the end, and the default, are run with the other seeds, which alone are shown. "
    + PROTOCOL[PROTOCOL.index("All runs of a task") :].replace(
        "at the end of what was tried", "in the outer twentieth of its range"
    )
)


def target_note(comparison: Comparison) -> str:
    """What the target is and where it comes from."""
    name = METRICS.get(comparison.metric, comparison.metric)
    origin = "given" if comparison.task.target is not None else f"the best that tuned {comparison.baseline} reaches"
    searched = ""
    if comparison.searched:
        trials = max(len(tried) for tried in comparison.tuning.values())
        searched = f", {trials} trials of every optimizer, {max(len(r.runs) for r in comparison.rows)} judged seeds"
    return f"Target: {name} {show(comparison.metric, comparison.target)} ({origin}), {comparison.task.steps} steps{searched}."
