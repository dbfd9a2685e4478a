"""The tables of a study as Markdown: ``docs/results.md`` is made by this."""

from __future__ import annotations

from pathlib import Path

from lnb.study.measures import Comparison
from lnb.study.words import HEADERS, LOSS, PROTOCOL, TIE, WIN, duels, machines, table, target_note
from lnb.training import TrainingError
from lnb.training.files import write_atomically


def markdown(comparisons: list[Comparison]) -> str:
    """The whole document."""
    every = [duel for comparison in comparisons for duel in duels(comparison)]
    lines = ["# Results", "", "Made from the data by `lnb report`; do not edit.", ""]
    lines += [f"Machine: {machine}." for machine in machines(comparisons)] + ["", PROTOCOL, ""]
    for verdict, title in ((LOSS, "Where LNB does not win"), (TIE, "No clear difference"), (WIN, "Where LNB wins")):
        lines += [f"## {title}", ""]
        chosen = [f"- {duel.task}: {duel.sentence}" for duel in every if duel.verdict == verdict]
        lines += [*(chosen or ["Nowhere in this study."]), ""]
    for comparison in comparisons:
        lines += [f"## {comparison.task.label}", "", target_note(comparison), ""]
        lines += [_line(HEADERS), _line(("---",) * len(HEADERS)), *map(_line, table(comparison)), ""]
    return "\n".join(lines)


def write_markdown(comparisons: list[Comparison], path: Path) -> None:
    """Write the document.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, markdown(comparisons).encode())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror or error})") from error


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
