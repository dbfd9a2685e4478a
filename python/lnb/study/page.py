"""The report: one HTML page that needs no network, and the same pictures as files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from functools import partial
from html import escape
from pathlib import Path

from lnb.study import profile_pictures
from lnb.study.canvas import THEMES, Theme
from lnb.study.family_words import family_headers, family_note, family_sentences, family_table
from lnb.study.findings import Family, Findings
from lnb.study.measures import Comparison
from lnb.study.pictures import PICTURES
from lnb.study.profile_words import NOTES, TITLES, conclusions, tables
from lnb.study.profiles import Profile
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

CAPTIONS = {
    "curves": "Value against training time and steps; one line per seed, the target dashed",
    "time-to-target": "Training time to the target",
    "learning-rates": "Sensitivity to the learning rate",
}
VERDICTS = {WIN: "Where LNB wins", TIE: "No clear difference", LOSS: "Where LNB does not win"}

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
figcaption, .note { font-size: .85rem; opacity: .85; }
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
        sections = [_family(family, out) for family in findings.families]
        sections += [_profile(profile, out) for profile in findings.profiles]
        sections += [_section(comparison, out) for comparison in findings.comparisons]
        page = out / "index.html"
        write_atomically(page, _page(findings.comparisons, sections).encode())
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written ({error.strerror or error})") from error
    return page


def _page(comparisons: tuple[Comparison, ...], sections: list[str]) -> str:
    every = [duel for comparison in comparisons for duel in duels(comparison)]
    verdicts = "".join(
        f"<h3>{escape(title)}</h3>"
        + (
            "".join(
                f'<p class="{verdict}"><strong>{escape(duel.task)}</strong>: {escape(duel.sentence)}</p>'
                for duel in every
                if duel.verdict == verdict
            )
            or "<p>Nowhere in this study.</p>"
        )
        for verdict, title in VERDICTS.items()
    )
    where = "".join(f"<p class='note'>Machine: {escape(machine)}</p>" for machine in machines(comparisons))
    where += f"<p><strong>{escape(caution(comparisons))}</strong></p>" if caution(comparisons) else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>LNB next to other optimizers</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><h1>LNB next to other optimizers</h1><p>{escape(summary(comparisons))}</p>"
        f"{_table(OVERVIEW, overview(comparisons))}{verdicts}"
        f'<h2>How it was measured</h2><p class="note">{escape(PROTOCOL)}</p>{where}'
        f"{''.join(sections)}</body></html>\n"
    )


def _section(comparison: Comparison, out: Path) -> str:
    label = comparison.task.label
    pictures = "".join(
        _figure(f"{label}-{name}", f"{label}: {CAPTIONS[name]}", partial(make, comparison), out)
        for name, make in PICTURES.items()
    )
    return (
        f"<h2>{escape(label)}</h2><p>{escape(target_note(comparison))}</p>"
        f'{_table(HEADERS, table(comparison))}<div class="pictures">{pictures}</div>'
    )


def _family(family: Family, out: Path) -> str:
    caption = f"{family.label}: medians over seeds by task"
    picture = _figure(f"family-{family.label}", caption, partial(profile_pictures.family, family), out)
    return (
        f"<h2>Side by side: {escape(family.label)}</h2><p>{escape(family_note(family))}</p>"
        f"{_list(family_sentences(family))}{_table(family_headers(family), family_table(family))}"
        f'<div class="pictures">{picture}</div>'
    )


def _profile(profile: Profile, out: Path) -> str:
    picture = _figure(f"profile-{profile.kind}", profile.title, partial(profile_pictures.profile, profile), out)
    figures = "".join(f"<h3>{escape(t.title)}</h3>{_table(t.headers, t.lines)}" for t in tables(profile))
    return (
        f'<h2>{escape(TITLES[profile.kind])}</h2><p class="note">{escape(NOTES[profile.kind])}</p>'
        f'<p class="note">Machine: {escape(profile.machine)}</p>{_list(conclusions(profile))}'
        f'<div class="pictures">{picture}</div>{figures}'
    )


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _table(headers: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table><tr>{head}</tr>{body}</table></div>'


def _figure(name: str, caption: str, draw: Callable[[Theme], bytes], out: Path) -> str:
    light, dark = (draw(theme) for theme in THEMES)
    write_atomically(out / f"{name}.png", light)
    light_url, dark_url = ("data:image/png;base64," + base64.b64encode(picture).decode() for picture in (light, dark))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark_url}">'
        f'<img src="{light_url}" alt="{escape(caption)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
