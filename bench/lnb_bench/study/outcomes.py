"""What came of one run, and the folder that keeps one file for each finished run."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnb.reading import LONGEST_TEXT, parse_json, read_bytes, read_text, reason
from lnb_bench.study.kept import check_outcome, check_series
from lnb_bench.study.parquet import from_parquet, to_parquet
from lnb_bench.study.series import to_columns, to_records
from lnb_bench.study.suite import Cell
from lnb_bench.training import Record, TrainingError
from lnb_bench.training.files import remove_leftovers, write_atomically
from lnb_bench.training.objectives import LOWER_IS_BETTER
from lnb_bench.training.records import record_from, shortened


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        cell: the run's description.
        labels: of task and optimizer.
        records: its metric series; empty if it diverged.
        metric: the figure of merit, one of the names in the test records.
        higher_is_better: its sense.
        failure: why there is no result; empty for a run that has one.
        wall: seconds that the whole run took, evaluations included.
        environment: versions and machine.
        peak_bytes: most memory that training steps like these needed; None where that could not be measured.
    """

    cell: dict[str, Any]
    labels: tuple[str, str]
    records: tuple[Record, ...]
    metric: str
    higher_is_better: bool
    failure: str
    wall: float
    environment: dict[str, Any]
    peak_bytes: int | None = None

    @property
    def curve(self) -> list[tuple[int, float, float]]:
        """Step, training seconds and value of every evaluation."""
        return [(r.step, r.seconds, r.values[self.metric]) for r in self.records if r.split == "test"]

    @property
    def final(self) -> float:
        """The value at the end; NaN for a run without a result."""
        return self.curve[-1][2] if self.records else math.nan

    def judged_by(self, metric: str | None) -> Outcome:
        """The same run with another figure of merit (None: its own), of which more is better unless it is a loss.

        Raises:
            TrainingError: the run has no such figure.
        """
        if metric is None or metric == self.metric:
            return self
        known = next((sorted(r.values) for r in self.records if r.split == "test"), None)
        if known is not None and metric not in known:
            raise TrainingError(f"[tasks.{self.labels[0]}]: metric={metric!r} must be one of {', '.join(known)}")
        return dataclasses.replace(self, metric=metric, higher_is_better=metric not in LOWER_IS_BETTER)

    def is_better(self, a: float, b: float) -> bool:
        """Whether ``a`` is at least as good as ``b``."""
        return a >= b if self.higher_is_better else a <= b


def _key(description: dict[str, Any]) -> str:
    return json.dumps(description, sort_keys=True)


def _read(file: Path) -> dict[str, Any]:
    """One outcome's file, checked."""
    try:
        raw = check_outcome(parse_json(read_text(file), finite=True))
        if not isinstance(raw["records"], list):
            raise ValueError(f"records={shortened(raw['records'])} must be a list")
        raw["records"] = tuple(map(record_from, raw["records"]))
        check_series(raw["records"], raw)
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    return raw


def _damaged(file: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{file}: damaged ({reason(error)}); remove it, and the run is made again")


def _checked(number: int, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The key and the outcome of a packed row.

    Raises:
        ValueError: it is damaged; names the row by its number.
    """
    try:
        raw = check_outcome(row)
        raw["records"] = to_records(raw["records"])
        check_series(raw["records"], raw)
    except ValueError as error:
        raise ValueError(f"run {number}: {error}") from error
    return _key(raw["cell"]), raw


class Store:
    """The folder of a study: ``cells/NAME.json`` for each finished run, written whole or not at all.

    A finished study also has them all in ``results.parquet``; this file alone is enough for a report.

    Args:
        path: the folder; made when the first run is saved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, cell: Cell) -> Path:
        """Where the outcome of ``cell`` is kept."""
        return self.path / "cells" / f"{cell.name}.json"

    def save(self, cell: Cell, outcome: Outcome) -> None:
        """Keep an outcome.

        Raises:
            TrainingError: it cannot be written; the outcomes kept so far are intact.
        """
        file = self.file(cell)
        content = json.dumps({**dataclasses.asdict(outcome)}, allow_nan=False)
        self._write(file, content.encode())

    def load(self, cell: Cell) -> Outcome | None:
        """The kept outcome of ``cell``, or None.

        Raises:
            TrainingError: its file is damaged.
        """
        file = self.file(cell)
        if os.path.lexists(file):
            raw = _read(file)
        elif (key := _key(cell.description())) in self._packed:
            raw = self._packed[key]
        else:
            return None
        try:
            outcome = Outcome(**{**raw, "labels": (cell.task.label, cell.optimizer.label)})
            if outcome.cell != json.loads(json.dumps(cell.description())):
                raise ValueError("it describes another run")
        except ValueError as error:
            raise _damaged(file, error) from error
        return outcome.judged_by(cell.task.metric)

    def pack(self) -> Path:
        """Write ``results.parquet``: every kept outcome.

        Raises:
            TrainingError: it cannot be written, or a kept outcome is damaged.
        """
        kept = dict(self._packed)
        for file in sorted((self.path / "cells").glob("*.json")):
            raw = _read(file)
            kept[_key(raw["cell"])] = raw
        rows = ({**raw, "records": to_columns(raw["records"])} for _, raw in sorted(kept.items()))
        self._write(self._all, to_parquet(rows))
        return self._all

    @property
    def _all(self) -> Path:
        return self.path / "results.parquet"

    @functools.cached_property
    def _packed(self) -> dict[str, dict[str, Any]]:
        """The outcomes of ``results.parquet`` by :func:`_key`, read once."""
        if not os.path.lexists(self._all):
            return {}
        remedy = "remove it, and the runs that it held are made again"
        try:
            rows = from_parquet(read_bytes(self._all, LONGEST_TEXT))
            found: dict[str, dict[str, Any]] = dict(_checked(number, row) for number, row in enumerate(rows, 1))
        except OSError as error:
            raise TrainingError(f"{self._all}: cannot be read ({reason(error)}); {remedy}") from error
        except ValueError as error:
            raise TrainingError(f"{self._all}: damaged ({error}); {remedy}") from error
        return found

    def describe(self, text: str) -> None:
        """Keep the suite file beside the outcomes, so that the folder explains itself.

        Raises:
            TrainingError: it cannot be written.
        """
        self._write(self.path / "suite.toml", text.encode())

    def clear_leftovers(self) -> None:
        """Remove the temporary files of a kill between write and rename."""
        for folder in (self.path, self.path / "cells"):
            remove_leftovers(folder)

    def _write(self, file: Path, content: bytes) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content)
        except OSError as error:
            raise TrainingError(
                f"{file}: cannot be written ({error.strerror or error}); the runs finished before are kept. Make room, "
                f"then give the same command again"
            ) from error
