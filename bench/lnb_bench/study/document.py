"""What a report says, in order, whatever it is written in: the page and the Markdown file render the same sections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from lnb_bench.study import own_targets, performance, profile_pictures, reason_words
from lnb_bench.study.canvas import Theme
from lnb_bench.study.endings import NOTE, endings
from lnb_bench.study.family_words import family_headers, family_note, family_sentences, family_table
from lnb_bench.study.findings import Family, Findings
from lnb_bench.study.groups import SuiteQuestion
from lnb_bench.study.measures import Comparison
from lnb_bench.study.pictures import PICTURES
from lnb_bench.study.profile_words import NOTES, TITLES, Table, conclusions, tables
from lnb_bench.study.profiles import Profile
from lnb_bench.study.question_words import question_headers, question_table
from lnb_bench.study.untargeted import HEADERS as NO_TARGET_HEADERS
from lnb_bench.study.untargeted import NOTE as NO_TARGET
from lnb_bench.study.untargeted import Untargeted
from lnb_bench.study.words import (
    LOSS,
    OVERVIEW,
    PROTOCOL,
    SEARCHED,
    TIE,
    WIN,
    caution,
    days,
    duels,
    headers,
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
    protocol = SEARCHED if findings.searched else PROTOCOL
    every = [duel for comparison in comparisons for duel in duels(comparison)]
    where = tuple(f"Machine: {machine}; {days(comparisons)}." for machine in machines(comparisons))
    return [
        *([Section("What this is", (findings.note,))] if findings.note else []),
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
        *_endings(findings),
        *_performance(findings),
        *_own_targets(findings),
        *_reasons(findings),
        Section("How it was measured", (protocol, *where), caution(comparisons)),
        *(_question(question, findings) for question in findings.questions),
        *map(_family, findings.families),
        *map(_profile, findings.profiles),
        *map(_task, comparisons),
        *map(_without_target, findings.untargeted),
    ]


def _endings(findings: Findings) -> list[Section]:
    sentences = tuple(endings(findings.comparisons)) if findings.searched else ()
    return [Section("At the end of equal steps", (NOTE,), sentences=sentences)] if sentences else []


def _performance(findings: Findings) -> list[Section]:
    if not findings.searched:
        return []
    comparisons = findings.comparisons
    drawn = Picture("performance-profile", "Performance profiles", partial(performance.picture, comparisons))
    note = " ".join((performance.__doc__ or "").split("\n\n")[1].split())
    note = note.replace(":data:`FARTHEST`", f"{performance.FARTHEST:g}")
    lines = performance.performance_table(comparisons)
    return [Section("Performance profiles", (note,), tables=(_table(performance.HEADERS, lines),), pictures=(drawn,))]


def _own_targets(findings: Findings) -> list[Section]:
    lines = own_targets.own_target_table(findings.comparisons) if findings.searched else []
    if not lines:
        return []
    note = " ".join((own_targets.__doc__ or "").split())
    table = _table(own_targets.own_target_headers(findings.comparisons), lines)
    return [Section("To the best that each other reaches", (note,), tables=(table,))]


def _reasons(findings: Findings) -> list[Section]:
    if not findings.reasons:
        return []
    lines = reason_words.reason_table(findings.reasons)
    return [Section("Why LNB loses there", (reason_words.NOTE,), tables=(_table(reason_words.HEADERS, lines),))]


def _question(question: SuiteQuestion, findings: Findings) -> Section:
    headers = question_headers(question, findings.comparisons)
    lines = question_table(question, findings.comparisons)
    notes = (question.note,) if question.note else ()
    return Section(f"What it is worth: {question.label}", notes, tables=(_table(headers, lines),))


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
        tables=(_table(headers(comparison), table(comparison)),),
        pictures=tuple(
            Picture(f"{label}-{name}", f"{label}: {CAPTIONS[name]}", partial(draw, comparison))
            for name, draw in PICTURES.items()
        ),
        only_on_page=True,
    )


def _without_target(task: Untargeted) -> Section:
    return Section(task.label, (NO_TARGET,), tables=(_table(NO_TARGET_HEADERS, task.lines()),))


def _table(headers: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Table:
    return Table("", headers, tuple(lines))
