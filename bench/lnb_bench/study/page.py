"""The report: one HTML page that needs no network, and the same pictures as files."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from lnb_bench.study.canvas import THEMES
from lnb_bench.study.document import Picture, Section, sections
from lnb_bench.study.findings import Findings
from lnb_bench.study.profile_words import Table
from lnb_bench.training import TrainingError
from lnb_bench.training.files import write_atomically

TITLE = "LNB next to other optimizers"

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --faint: #d1d5db; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --paper: #171717; --faint: #4b5563; --soft: #262626; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--faint); padding-top: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--faint); }
figure { margin: 1rem 0; max-width: 34rem; } img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; opacity: .85; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.win, .tie, .loss { border-left: .3rem solid; padding: .2rem .7rem; margin: .4rem 0; background: var(--soft); }
.win { border-color: #16a34a; } .tie { border-color: #9ca3af; } .loss { border-color: #dc2626; }
"""


def write_page(findings: Findings, out: Path) -> Path:
    """Write ``index.html`` and the pictures (light ones) into ``out``.

    Returns:
        The page.

    Raises:
        TrainingError: a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [_section(section, out) for section in sections(findings)]
        page = out / "index.html"
        write_atomically(page, _page(written).encode())
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error.strerror or error})") from error
    return page


def _page(written: list[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><h1>{TITLE}</h1>{''.join(written)}</body></html>\n"
    )


def _section(section: Section, out: Path) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in section.notes)
    warning = f"<p><strong>{escape(section.warning)}</strong></p>" if section.warning else ""
    pictures = "".join(_figure(picture, out) for picture in section.pictures)
    shown = f'<div class="pictures">{pictures}</div>' if pictures else ""
    tables = "".join(map(_table, section.tables))
    return f"<h2>{escape(section.title)}</h2>{notes}{warning}{_sentences(section)}{tables}{shown}"


def _sentences(section: Section) -> str:
    if section.verdict:
        return "".join(f'<p class="{section.verdict}">{escape(sentence)}</p>' for sentence in section.sentences)
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in section.sentences)
    return f"<ul>{items}</ul>" if items else ""


def _table(table: Table) -> str:
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in table.lines)
    return f'{title}<div class="scroll" tabindex="0"><table><tr>{head}</tr>{body}</table></div>'


def _figure(picture: Picture, out: Path) -> str:
    light, dark = (picture.draw(theme) for theme in THEMES)
    write_atomically(out / f"{picture.name}.png", light)
    light_url, dark_url = ("data:image/png;base64," + base64.b64encode(image).decode() for image in (light, dark))
    caption = escape(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark_url}">'
        f'<img src="{light_url}" alt="{caption}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
