"""The file that :class:`lnb.integrations.watch.Watch` writes and ``lnb watch`` shows: JSON, one object a line.

The first line of a run says what it is of: ``{"format": "lnb-watch", "version": 1, "layers": [..]}``. Every other line is a
record: ``{"step": .., "time": .., "run": {figure: value}, "layers": {layer: {figure: value}}}``. A run that goes on in a folder
adds its own first line. Numbers that are not finite are the strings ``"nan"``, ``"inf"`` and ``"-inf"``, so that every line is
JSON by its standard.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "watch.jsonl"
FORMAT, VERSION = "lnb-watch", 1
Figures = dict[str, float]


@dataclass(frozen=True)
class Record:
    """What was logged after one step.

    Attributes:
        step: its number.
        time: when, in seconds since 1970.
        run: figures of the whole run: counters, and what was noted.
        layers: figures of every layer, by its name.
    """

    step: int
    time: float
    run: Figures = field(default_factory=dict)
    layers: dict[str, Figures] = field(default_factory=dict)


class WatchFile:
    """Appends to a file; every line is whole and on its way to the disk when the call returns.

    Args:
        path: the file. What a process that was killed left of a line is cut off.
        layers: names of the layers.

    Raises:
        OSError: it cannot be written.
        ValueError: there is another kind of file; it stays as it is.
    """

    def __init__(self, path: Path, layers: list[str]) -> None:
        self.path = path
        if path.exists() and path.stat().st_size:
            Tail(path).read()  # raises where it is another kind of file
            _drop_torn_line(path)
        self._append({"format": FORMAT, "version": VERSION, "layers": layers})

    def write(self, record: Record) -> None:
        """Add a record."""
        layers = {name: _plain(figures) for name, figures in record.layers.items()}
        self._append({"step": record.step, "time": record.time, "run": _plain(record.run), "layers": layers})

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())


class Tail:
    """Reads what was added to a file since it was last asked.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._line = 0

    def read(self) -> list[Record]:
        """The new records of whole lines; a line that is still being written is left for the next call.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is of another kind or version, or a line is damaged.
        """
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._position:
                self._position = self._line = 0  # a new file of the same name
            file.seek(self._position)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not self._position and not whole and content and not content.startswith(b"{"):
            raise self._error("it does not begin as one")
        records = []
        for line in whole.splitlines():
            self._line += 1
            try:
                entry = json.loads(line)
                record = self._record(entry)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise self._error(f"line {self._line}: {error}") from error
            if record is not None:
                records.append(record)
        self._position += len(whole)
        return records

    def _record(self, entry: dict[str, Any]) -> Record | None:
        if "format" in entry or self._line == 1:
            found = entry["format"], entry["version"]
            if found != (FORMAT, VERSION):
                raise ValueError(f"format and version {found} must be {(FORMAT, VERSION)}")
            return None
        layers = {str(name): _numbers(figures) for name, figures in entry["layers"].items()}
        return Record(int(entry["step"]), float(entry["time"]), _numbers(entry["run"]), layers)

    def _error(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path} is no file of lnb.integrations.watch, or it is damaged ({what}); name the folder that was given to "
            f"Watch(optimizer, folder), or another one for a new run"
        )


def _drop_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)


def _plain(figures: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else str(float(value)) for name, value in figures.items()}


def _numbers(figures: Mapping[str, Any]) -> Figures:
    return {str(name): float(value) for name, value in figures.items()}
