"""What a report says, in order, whatever it is written in: the page and the Markdown file render the same sections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from lnb_bench.study import profile_pictures
from lnb_bench.study.canvas import Theme
from lnb_bench.study.family_words import family_headers, family_note, family_sentences, family_table
from lnb_bench.study.findings import Family, Findings
from lnb_bench.study.measures import Comparison
from lnb_bench.study.pictures import PICTURES
from lnb_bench.study.profile_words import NOTES, TITLES, Table, conclusions, tables
from lnb_bench.study.profiles import Profile
from lnb_bench.study.words import (
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

VERDICTS = {LOSS: "Where LNB does not win", TIE: "No clear difference", WIN: "Where LNB wins"}
CAPTIONS = {
    "curves": "Value against training time and steps; one line per seed, the target dashed",
    "time-to-target": "Training time to the target",
    "learning-rates": "Sensitivity to the learning rate",
}


@dataclass(frozen=True)
class Picture:
    """A PNG picture that is drawn for a theme; ``name`` is that of its file, without the ending."""

    name: str
    caption: str
    draw: Callable[[Theme], bytes]


@dataclass(frozen=True)
class Section:
    """One part of the report; what is empty is left out.

    Attributes:
        title: its heading.
        notes: paragraphs that explain.
        warning: a paragraph that must not be missed.
        sentences: conclusions, as a list.
        verdict: what the sentences are, one of :data:`VERDICTS`; else empty.
        tables: tables.
        pictures: pictures.
        only_on_page: the pictures are too many for a document of the repository.
    """

    title: str
    notes: tuple[str, ...] = ()
    warning: str = ""
    sentences: tuple[str, ...] = ()
    verdict: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    only_on_page: bool = False


def sections(findings: Findings) -> list[Section]:
    """The whole report."""
    comparisons = findings.comparisons
    every = [duel for comparison in comparisons for duel in duels(comparison)]
    where = tuple(f"Machine: {machine}." for machine in machines(comparisons))
    return [
        Section("Who is ahead", (summary(comparisons),), tables=(_table(OVERVIEW, overview(comparisons)),)),
        *(
            Section(
                title,
                () if any(duel.verdict == verdict for duel in every) else ("Nowhere in this study.",),
                sentences=tuple(f"{duel.task}: {duel.sentence}" for duel in every if duel.verdict == verdict),
                verdict=verdict,
            )
            for verdict, title in VERDICTS.items()
        ),
        Section("How it was measured", (PROTOCOL, *where), caution(comparisons)),
        *map(_family, findings.families),
        *map(_profile, findings.profiles),
        *map(_task, comparisons),
    ]


def _family(family: Family) -> Section:
    picture = Picture(
        f"family-{family.label}",
        f"{family.label}: medians over seeds by task",
        partial(profile_pictures.family, family),
    )
    return Section(
        f"Side by side: {family.label}",
        (family_note(family),),
        sentences=tuple(family_sentences(family)),
        tables=(_table(family_headers(family), family_table(family)),),
        pictures=(picture,),
    )


def _profile(profile: Profile) -> Section:
    return Section(
        TITLES[profile.kind],
        (NOTES[profile.kind], f"Machine: {profile.machine}."),
        sentences=tuple(conclusions(profile)),
        tables=tuple(tables(profile)),
        pictures=(Picture(f"profile-{profile.kind}", profile.title, partial(profile_pictures.profile, profile)),),
    )


def _task(comparison: Comparison) -> Section:
    label = comparison.task.label
    return Section(
        label,
        (target_note(comparison),),
        tables=(_table(HEADERS, table(comparison)),),
        pictures=tuple(
            Picture(f"{label}-{name}", f"{label}: {CAPTIONS[name]}", partial(draw, comparison))
            for name, draw in PICTURES.items()
        ),
        only_on_page=True,
    )


def _table(headers: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Table:
    return Table("", headers, tuple(lines))
