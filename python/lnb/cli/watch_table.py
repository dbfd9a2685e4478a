"""The table that ``lnb watch`` shows: a row for every layer, and what is unusual in colour."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lnb.reports.watch_file import Figures, Record

_KEPT = 12  # records whose trend is drawn
_BARS = "▁▂▃▄▅▆▇█"
_AROUND = 9  # lines of the screen that show no layer
_BAD_CONDITION = 1e5
"""Condition numbers from this one on are shown in colour: products in float32 then lose half of their digits."""


class History:
    """The latest records of a run."""

    def __init__(self) -> None:
        self.records: deque[Record] = deque(maxlen=_KEPT)

    def add(self, records: Iterable[Record]) -> None:
        """Take new records; a step that is not after the last one begins a new run."""
        for record in records:
            if self.records and record.step <= self.records[-1].step:
                self.records.clear()
            self.records.append(record)


def screen(history: History, path: Path, sort: str, height: int | None) -> RenderableType:
    """What is shown of the records that were read so far.

    Args:
        history: the records.
        path: of the file, for the heading.
        sort: one of :data:`SORTS`.
        height: lines that there is room for; None for all that are needed.
    """
    if not history.records:
        return Text(f"{path}: nothing is logged yet")
    record = history.records[-1]
    table = Table(
        title=str(path), title_justify="left", caption=_caption(record), caption_justify="left", box=box.SIMPLE_HEAD
    )
    # On a narrow screen the names give way: only columns that may wrap are cut before the others.
    table.add_column("layer", overflow="ellipsis", min_width=8)
    for header in ("gain", "trend", "condition", "rank", "dead", "age"):
        table.add_column(header, justify="left" if header == "trend" else "right", no_wrap=True)
    names = sorted(record.layers, key=lambda name: SORTS[sort](record.layers[name]))
    room = len(names) if height is None else max(1, height - _AROUND)
    for name in names[:room]:
        table.add_row(name, *_cells(record.layers[name], _gains(history, name)))
    left = len(names) - room
    more = [Text(f"{left} more layers; --sort says which come first", style="dim")] if left > 0 else []
    return Group(_heading(history), table, *more)


def _heading(history: History) -> Text:
    last, first = history.records[-1], history.records[0]
    parts = [f"step {last.step}", f"{max(0.0, time.time() - last.time):.0f} s ago"]
    if last.time > first.time:
        parts.append(f"{(last.step - first.step) / (last.time - first.time):.3g} steps a second")
    text = Text(", ".join(parts), style="bold")
    for name, value in last.run.items():
        if name != "steps":
            unusual = value > 0 and name.startswith(("skipped_steps", "stood_still"))
            text.append(f"   {name} {value:.6g}", style="bold red" if unusual else "not bold")
    return text


def _caption(record: Record) -> str:
    ages = [figures["refresh_age"] for figures in record.layers.values() if "refresh_age" in figures]
    return f"{len(record.layers)} layers; their oldest statistics are of {max(ages):.0f} steps ago" if ages else ""


def _cells(figures: Figures, gains: list[float]) -> tuple[Text, ...]:
    condition, rank = figures.get("input_condition", math.nan), figures.get("input_rank", math.nan)
    count, dead = figures.get("inputs", math.nan), figures.get("dead_inputs", math.nan)
    of_all = _number(rank) if math.isnan(count) else f"{_number(rank)} of {count:.0f}"
    return (
        Text(_number(figures.get("gain", math.nan), "3.2e"), style="" if figures.get("gain", 0.0) >= 0 else "red"),
        Text(_trend(gains)),
        Text(_number(condition, "3.1e"), style="red" if condition >= _BAD_CONDITION else ""),
        Text(of_all, style="yellow" if rank < count else ""),
        Text(_number(dead), style="yellow" if dead > 0 else ""),
        Text(_number(figures.get("refresh_age", math.nan))),
    )


def _number(value: float, form: str = ".0f") -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _gains(history: History, name: str) -> list[float]:
    return [record.layers.get(name, {}).get("gain", math.nan) for record in history.records]


def _trend(values: list[float]) -> str:
    """The logarithms of what is positive, as bars."""
    logs = [math.log(value) if 0 < value < math.inf else math.nan for value in values]
    known = [value for value in logs if not math.isnan(value)]
    if len(known) < 2:
        return ""
    low, spread = min(known), max(known) - min(known)
    return "".join(
        " " if math.isnan(value) else _BARS[min(7, int(8 * (value - low) / spread)) if spread else 3] for value in logs
    )


def _falling(name: str) -> Callable[[Figures], float]:
    """The largest first, and what has no such figure last."""

    def key(figures: Figures) -> float:
        value = figures.get(name, math.nan)
        return math.inf if math.isnan(value) else -value

    return key


def _rank_share(figures: Figures) -> float:
    value = figures.get("input_rank", math.nan) / figures.get("inputs", math.nan)
    return math.inf if math.isnan(value) else value


SORTS: dict[str, Callable[[Figures], float]] = {
    "model": lambda figures: 0.0,  # in the order of the record: sorting is stable
    "gain": _falling("gain"),
    "condition": _falling("input_condition"),
    "rank": _rank_share,
    "dead": _falling("dead_inputs"),
    "age": _falling("refresh_age"),
}
"""Which layers come first: those of the largest figure, or of the smallest share of rank; "model" for the model's order."""
