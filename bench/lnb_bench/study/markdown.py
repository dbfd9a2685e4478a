"""A report as Markdown: ``docs/results.md`` is made by this."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from lnb_bench.study.canvas import THEMES
from lnb_bench.study.document import Section, sections
from lnb_bench.study.findings import Findings
from lnb_bench.study.profile_words import Table
from lnb_bench.training import TrainingError
from lnb_bench.training.files import write_atomically


def markdown(findings: Findings, folder: str) -> str:
    """The whole document; the pictures that it shows are in ``folder``."""
    title = folder.replace("-", ": ", 1).replace("-", " ").capitalize()  # of docs/results-peers.md: "Results: peers"
    lines = [f"# {title}", "", "Made from the data by `lnb-bench report`; do not edit.", ""]
    for section in sections(findings):
        lines += _section(section, folder)
    return "\n".join(lines)


def write_markdown(findings: Findings, path: Path) -> None:
    """Write the document, and its pictures, if it shows any, into a folder of the same name beside it.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        folder = path.with_suffix("")
        shown = [picture for section in sections(findings) if not section.only_on_page for picture in section.pictures]
        (folder if shown else path.parent).mkdir(parents=True, exist_ok=True)
        for picture in shown:
            write_atomically(folder / f"{picture.name}.png", picture.draw(THEMES[0]))
        write_atomically(path, markdown(findings, folder.name).encode())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror or error})") from error


def _section(section: Section, folder: str) -> list[str]:
    title = _text(section.title)
    lines = [f"## {title}", ""]
    for note in section.notes:
        lines += [_text(note), ""]
    if section.warning:
        lines += [f"**{_text(section.warning)}**", ""]
    if section.sentences:
        lines += [*(f"- {_text(sentence)}" for sentence in section.sentences), ""]
    if not section.only_on_page:
        for picture in section.pictures:
            lines += [f"![{title}]({quote(folder)}/{quote(picture.name)}.png)", ""]
    for table in section.tables:
        lines += _table(table)
    return lines


def _table(table: Table) -> list[str]:
    title = [f"{_text(table.title)}:", ""] if table.title else []
    return [*title, _line(table.headers), _line(("---",) * len(table.headers)), *map(_line, table.lines), ""]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    """A text on one line that no reader of Markdown takes for HTML: suites and profiles come from anywhere."""
    return escape(" ".join(text.split()), quote=False)
