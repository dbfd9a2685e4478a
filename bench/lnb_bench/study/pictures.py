"""The pictures of a study, each for a light and a dark page."""

from __future__ import annotations

import itertools
import math

from lnb_bench.study.canvas import OTHERS, OURS, Theme, dress, png, subplots
from lnb_bench.study.measures import Comparison, Row
from lnb_bench.study.words import METRICS, is_ours


def curves(comparison: Comparison, theme: Theme) -> bytes:
    """Value against training time and against steps, every seed thin, PNG."""
    figure, panels = subplots(theme, 2, 1, figsize=(5.2, 6.2))
    name = METRICS.get(comparison.metric, comparison.metric)
    for panel, place, label in zip(panels, (1, 0), ("training time, s", "steps"), strict=True):
        values: list[float] = []
        for row, colour in _coloured(comparison):
            for number, run in enumerate(row.runs):
                points = run.curve[1:]
                values += [point[2] for point in points]
                panel.plot(
                    [point[place] for point in points],
                    [point[2] for point in points],
                    color=colour,
                    linewidth=1.4,
                    alpha=0.85,
                    label=row.optimizer if number == 0 else None,
                )
        panel.axhline(comparison.target, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
        if not comparison.higher_is_better and min(values) > 0 and max(values) > 20 * min(values):
            panel.set_yscale("log")
        dress(panel, theme, label, name)
    panels[0].legend(fontsize=8, frameon=False, labelcolor=theme.ink, ncols=2)
    return png(figure)


def bars(comparison: Comparison, theme: Theme) -> bytes:
    """Time to target, median and interval, PNG; an optimizer that never got there has a word instead of a bar."""
    rows = [(row, colour) for row, colour in _coloured(comparison) if row.seconds_to_target is not None][::-1]
    height = 1.0 + 0.4 * len(rows)
    figure, panel = subplots(theme, figsize=(5.2, height))
    for place, (row, colour) in enumerate(rows):
        reached = row.seconds_to_target
        if reached is None or math.isinf(reached.median):
            panel.annotate(" never", (0, place), color=theme.ink, fontsize=9, va="center")
            panel.barh(place, 0)
            continue
        panel.barh(place, reached.median, color=colour, height=0.6)
        if math.isfinite(reached.high):
            panel.plot([reached.low, reached.high], [place, place], color=theme.ink, linewidth=1.2)
    panel.set_yticks(range(len(rows)), [row.optimizer for row, _ in rows])
    dress(panel, theme, "time to target, s", "")
    panel.grid(False)
    panel.set_xlim(left=0)
    return png(figure)


def rates(comparison: Comparison, theme: Theme) -> bytes:
    """Value at the end against the learning rate, in units of the tuned one, PNG."""
    figure, panel = subplots(theme, figsize=(5.2, 3.2))
    for row, colour in _coloured(comparison):
        if row.lr is not None:
            points = [(lr / row.lr, value) for lr, value in comparison.tuning[row.optimizer] if not math.isnan(value)]
            line = "none" if comparison.searched else "-"  # neighbours in rate differ in all else too
            panel.plot(
                *zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.2, linestyle=line
            )
    panel.set_xscale("log")
    finals = [value for grid in comparison.tuning.values() for _, value in grid if value > 0]
    if not comparison.higher_is_better and finals and max(finals) > 20 * min(finals):
        panel.set_yscale("log")
    dress(panel, theme, "learning rate over the tuned one", METRICS.get(comparison.metric, comparison.metric))
    return png(figure)


PICTURES = {"curves": curves, "time-to-target": bars, "learning-rates": rates}


def _coloured(comparison: Comparison) -> list[tuple[Row, str]]:
    """Rows with runs, each with its colour: warm ones are LNB's."""
    mine, others = itertools.cycle(OURS), itertools.cycle(OTHERS)
    return [(row, next(mine if is_ours(comparison, row) else others)) for row in comparison.rows if row.runs]
