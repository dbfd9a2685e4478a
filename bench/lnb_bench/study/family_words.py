"""Tasks side by side in words and as a table."""

from __future__ import annotations

import math

from lnb_bench.study.findings import Family
from lnb_bench.study.words import METRICS, PERCENT, show, show_estimate


def family_note(family: Family) -> str:
    """What the table shows."""
    metric = METRICS.get(family.metric, family.metric)
    shown = {
        "final": f"{metric} at the end",
        "steps_to_target": "steps to the target",
        "shortest_schedule": f"steps of the shortest schedule tried ({_either(family.lengths)}) that meets the target",
    }[family.measure]
    tuned = "each schedule" if family.measure == "shortest_schedule" else "each task"
    said = f"{shown[0].upper()}{shown[1:]}, each optimizer at its tuned rate on {tuned}."
    return f"{said} {family.note}" if family.note else said


def _either(lengths: tuple[int, ...]) -> str:
    return " or ".join(part for part in (", ".join(map(str, lengths[:-1])), str(lengths[-1])) if part)


def family_headers(family: Family) -> tuple[str, ...]:
    """Column titles."""
    return ("optimizer", *family.tasks, "moves by" if family.measure == "final" else "factor")


def family_table(family: Family) -> list[tuple[str, ...]]:
    """The rows as text."""
    metric = family.metric if family.measure == "final" else None
    return [
        (optimizer, *(show_estimate(metric, estimate) for estimate in estimates), _spread(family, optimizer))
        for optimizer, estimates in family.rows.items()
    ]


def family_sentences(family: Family) -> list[str]:
    """One conclusion per optimizer."""
    sentences = []
    for optimizer, estimates in family.rows.items():
        medians = [estimate.median for estimate in estimates]
        missed = [task for task, median in zip(family.tasks, medians, strict=True) if math.isinf(median)]
        if family.measure == "final":
            low, high = (show(family.metric, value) for value in (min(medians), max(medians)))
            text = f"between {low} and {high}, moves by {_spread(family, optimizer)}"
        elif len(missed) == len(medians):
            text = "never reached the target"
        elif missed:
            text = f"reached the target except on {', '.join(missed)}{_late(family, medians)}"
        else:
            factor = f"a factor of {family.spread(optimizer):.3g}"
            text = f"{min(medians):g} to {max(medians):g} steps, {factor}{_late(family, medians)}"
        sentences.append(f"{optimizer}: {text}.")
    return sentences


def _late(family: Family, medians: list[float]) -> str:
    """Where the last step of the schedule met the target, another schedule would have met it at another step."""
    if family.measure != "steps_to_target":
        return ""
    late = [
        task for task, budget, median in zip(family.tasks, family.budgets, medians, strict=True) if median == budget
    ]
    return f"; only with the last step of its schedule on {', '.join(late)}" if late else ""


def _spread(family: Family, optimizer: str) -> str:
    spread = family.spread(optimizer)
    if family.measure == "final":
        return f"{100 * spread:.2f} points" if family.metric in PERCENT else f"{spread:.3g}"
    return "never on some" if not math.isfinite(spread) else f"x{spread:.3g}"
