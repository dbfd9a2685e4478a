"""What the numbers of ``preset="full_batch"`` are worth: each changed alone, on the factorisation of ``bench/condition.py``.

    python bench/full_batch_study.py [--seeds 10] [--json bench/results/full_batch.json] [--page docs/presets.md]

A run counts steps until the relative error is 1e-6, at most 300, in the narrowest model; seeds vary the initial factors. Changes
are not tuned.
"""

from __future__ import annotations

import statistics
from typing import Any

from condition import Problem
from moments_study import Results, run

import lnb

BEGIN, END = "<!-- table of bench/full_batch_study.py -->", "<!-- end of table of bench/full_batch_study.py -->"
CONDITIONS = (1e1, 1e4, 1e8)
WIDTH, TARGET, LIMIT = 6, 1e-6, 300
DEFAULT = "default"
CHANGES: dict[str, tuple[Any, ...]] = {
    "lr": (0.5, 2.0),
    "momentum": (0.5,),
    "ridge": (1e-4, 1e-13),
    "min_norm": (0.01, 100.0),
    "max_relative_change": (0.25, 1.0, None),
    "damping": ("none",),
    "trust_region": ("layer",),
    "b_s": (0.5,),
}


def variants() -> dict[str, dict[str, Any]]:
    """The settings of every row, by its name; the default comes first."""
    changed = {f"{name}={value}": {name: value} for name, values in CHANGES.items() for value in values}
    return {DEFAULT: {}, **changed}


def steps(settings: dict[str, Any], condition: float, seed: int) -> int:
    """Until the target is met; one more than the limit where it was not."""
    problem = Problem(condition, WIDTH, seed)
    optimizer = lnb.LNB(problem.model, preset="full_batch", **settings)
    for count in range(LIMIT + 1):
        optimizer.zero_grad()
        if problem.backward() <= TARGET:
            return count
        optimizer.step()
    return LIMIT + 1


def measure(seed: int, results: Results) -> None:
    """Every change at every condition number."""
    for row, settings in variants().items():
        for condition in CONDITIONS:
            column = f"condition number {condition:.0e}".replace("e+0", "e")
            results.setdefault(row, {}).setdefault(column, []).append(steps(settings, condition, seed))


def shown(counts: list[float]) -> str:
    """Median and range; ``never`` for runs that did not meet the target within the limit."""

    def text(value: float) -> str:
        return "never" if value > LIMIT else f"{value:g}"

    middle, low, high = text(statistics.median_high(counts)), text(min(counts)), text(max(counts))
    return middle if low == high else f"{middle} ({low} to {high})"


def tables(kept: dict[str, Any]) -> str:
    results: Results = kept["results"]
    columns = list(results[DEFAULT])
    seeds = len(results[DEFAULT][columns[0]])
    lines = [
        f"Steps to a relative error of 1e-6, median (least to most) of {seeds} seeds; torch {kept['torch']}, {kept['date']}.",
        "",
        f"| changed | {' | '.join(columns)} |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    for row, entry in results.items():
        name = "the preset" if row == DEFAULT else f"`{row}`"
        lines.append(f"| {name} | {' | '.join(shown(entry[column]) for column in columns)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, {"results": measure}, tables, BEGIN, END)
