"""``lnb-bench run`` and ``lnb-bench report``: run a study with live progress, and look at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from lnb.cli.errors import WRONG_USE, fail, reported
from lnb.reading import read_text
from lnb_bench.study import (
    Progress,
    Store,
    Suite,
    clock_of,
    findings,
    load_profile,
    load_suite,
    run_suite,
)
from lnb_bench.study.suite import check_labels
from lnb_bench.training import TrainingError
from lnb_bench.training.lock import locked
from lnb_bench.training.optimizers import require_optimizer
from lnb_bench.training.peers import PeerError


def run_study(
    suite_file: Path,
    out: Path,
    data: Path | None,
    modes: dict[str, bool],
    only: tuple[list[str] | None, list[str] | None],
    threads: int | None,
    clock: str,
    console: Console,
    skip_missing: bool = False,
) -> None:
    """Make the runs of the suite that ``out`` does not hold yet."""
    again = f"interrupted; finished runs are kept in {out}: give the same command again to go on"
    with reported(TrainingError, ValueError, TypeError, interrupted=again):
        clock_of(clock, threads)
        suite = load(suite_file, modes).only(*only)
        if skip_missing:
            suite = _without_missing(suite, console)
        text = read_text(suite_file)
        if threads is not None:
            torch.set_num_threads(threads)
        with locked(out):
            store = Store(out)
            store.describe(text)
            last = _show(suite, store, data, clock, console)
            store.pack()
        console.print(f"{last.done} runs in {out}; look at them with: lnb-bench report {suite_file} {out} --out DIR")


def _without_missing(suite: Suite, console: Console) -> Suite:
    """The suite without the optimizers that cannot be built here, each of which is named."""
    faults = {optimizer.label: _fault(optimizer.optimizer) for optimizer in suite.optimizers}
    missing = {label: fault for label, fault in faults.items() if fault}
    for fault in missing.values():
        console.print(f"left out: {fault}", soft_wrap=True)
    return suite.without(missing)


def _fault(optimizer: str) -> str:
    """Why the optimizer cannot be built here; empty where it can."""
    try:
        require_optimizer(optimizer)
    except PeerError as error:
        return str(error)
    return ""


def _show(suite: Suite, store: Store, data: Path | None, clock: str, console: Console) -> Progress:
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn())
    with Bars(*columns, TextColumn("{task.fields[left]}"), console=console) as bars:
        bar = bars.add_task(suite.name, total=None, left="")
        for progress in run_suite(suite, store, data, clock):
            left = progress.seconds_left
            bars.update(
                bar,
                total=progress.total,
                completed=progress.done,
                left="" if left is None else f"about {duration(left)} left",
            )
            if not progress.kept:
                bars.console.print(_line(progress), highlight=False, soft_wrap=True)
    return progress


def _line(progress: Progress) -> str:
    outcome, cell = progress.outcome, progress.cell
    figure = outcome.failure or f"{outcome.metric} {outcome.final:.4g}, {outcome.records[-1].seconds:.1f} s of training"
    return f"{cell.task.label} · {cell.optimizer.label} · lr {cell.lr:g} · seed {cell.seed}: {figure}"


def run_report(
    suite_file: Path,
    runs: Path,
    out: Path,
    modes: dict[str, bool],
    profiles: list[Path],
    markdown: Path | None,
    console: Console,
    note: str = "",
    without: Sequence[str] = (),
) -> None:
    """Write the page, the pictures and, if asked, the tables as Markdown."""
    from lnb_bench.study.markdown import write_markdown
    from lnb_bench.study.page import write_page

    with reported(TrainingError, ValueError):
        suite = load(suite_file, modes)
        check_labels("--without", list(without), [optimizer.label for optimizer in suite.optimizers])
        found = findings(suite.without(without), Store(runs), map(load_profile, profiles), note)
        page = write_page(found, out)
        console.print(f"written: {page}", soft_wrap=True)
        if markdown is not None:
            write_markdown(found, markdown)
            console.print(f"written: {markdown}", soft_wrap=True)


def load(suite_file: Path, modes: dict[str, bool]) -> Suite:
    """The suite in the form that the flags, by name, ask for."""
    asked = [mode for mode, wanted in modes.items() if wanted]
    if len(asked) > 1:
        flags = " and ".join(f"--{mode}" for mode in asked)
        raise fail(f"{flags} exclude each other: give one of them", WRONG_USE)
    return load_suite(suite_file, asked[0] if asked else None)


def duration(seconds: float) -> str:
    """A duration in words, such as ``3 h 20 min``, ``12 min`` or ``40 s``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
