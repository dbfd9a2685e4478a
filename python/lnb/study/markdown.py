"""The tables of a study as Markdown: ``docs/results.md`` is made by this."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lnb.study import profile_pictures
from lnb.study.canvas import THEMES
from lnb.study.family_words import family_headers, family_note, family_sentences, family_table
from lnb.study.findings import Findings
from lnb.study.profile_words import NOTES, TITLES, conclusions, tables
from lnb.study.words import (
    HEADERS,
    LOSS,
    OVERVIEW,
    PROTOCOL,
    TIE,
    WIN,
    caution,
    duels,
    machines,
    overview,
    summary,
    table,
    target_note,
)
from lnb.training import TrainingError
from lnb.training.files import write_atomically


def markdown(findings: Findings, folder: str) -> str:
    """The whole document; the pictures that it shows are in ``folder``."""
    comparisons = findings.comparisons
    every = [duel for comparison in comparisons for duel in duels(comparison)]
    lines = ["# Results", "", "Made from the data by `lnb report`; do not edit.", ""]
    lines += [f"Machine: {machine}." for machine in machines(comparisons)] + ["", PROTOCOL, ""]
    lines += [f"**{caution(comparisons)}**", ""] if caution(comparisons) else []
    lines += [summary(comparisons), "", *_table(OVERVIEW, overview(comparisons))]
    for verdict, title in ((LOSS, "Where LNB does not win"), (TIE, "No clear difference"), (WIN, "Where LNB wins")):
        chosen = [f"{duel.task}: {duel.sentence}" for duel in every if duel.verdict == verdict]
        lines += [f"## {title}", "", *(_list(chosen) if chosen else ["Nowhere in this study.", ""])]
    for family in findings.families:
        lines += [f"## Side by side: {family.label}", "", family_note(family), "", *_list(family_sentences(family))]
        lines += [
            *_table(family_headers(family), family_table(family)),
            f"![{family.label}]({folder}/{family.label}.png)",
            "",
        ]
    for profile in findings.profiles:
        lines += [f"## {TITLES[profile.kind]}", "", NOTES[profile.kind], "", f"Machine: {profile.machine}.", ""]
        lines += [*_list(conclusions(profile)), f"![{TITLES[profile.kind]}]({folder}/{profile.kind}.png)", ""]
        for shown in tables(profile):
            lines += [f"{shown.title}:", "", *_table(shown.headers, shown.lines)]
    for comparison in comparisons:
        lines += [f"## {comparison.task.label}", "", target_note(comparison), "", *_table(HEADERS, table(comparison))]
    return "\n".join(lines)


def write_markdown(findings: Findings, path: Path) -> None:
    """Write the document, and its pictures into a folder of the same name beside it.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        folder = path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        light = THEMES[0]
        for family in findings.families:
            write_atomically(folder / f"{family.label}.png", profile_pictures.family(family, light))
        for profile in findings.profiles:
            write_atomically(folder / f"{profile.kind}.png", profile_pictures.profile(profile, light))
        write_atomically(path, markdown(findings, folder.name).encode())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror or error})") from error


def _list(sentences: Iterable[str]) -> list[str]:
    return [*(f"- {sentence}" for sentence in sentences), ""]


def _table(headers: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> list[str]:
    return [_line(headers), _line(("---",) * len(headers)), *map(_line, lines), ""]


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
