"""The file of a run's metric series, read back with every line checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from lnb.reading import LONGEST_TEXT, parse_json, read_bytes, reason
from lnb_bench.training.errors import TrainingError
from lnb_bench.training.loop import Trainer
from lnb_bench.training.records import Record, record_from

_RESTORE = "restore the file from a copy, or start the run anew in another --out"


class MetricSeries:
    """A file of one JSON record a line.

    Args:
        path: the file; where there is none, the series is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def numbered(self) -> Iterator[tuple[int, Record]]:
        """Line number and record, in order; a last line that a kill cut off is left out.

        Raises:
            TrainingError: the file cannot be read, a line is damaged, or lines are not in the order of training.
        """
        if not os.path.lexists(self.path):
            return
        try:
            lines = read_bytes(self.path, LONGEST_TEXT).split(b"\n")
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be read ({reason(error)}); {_RESTORE}") from error
        latest = (-1, False)
        for number, line in enumerate(lines, 1):
            last = number == len(lines)  # what follows the last line's end: nothing, or a line that a kill cut off
            if last and not line:
                return
            try:
                record = record_from(parse_json(line))
            except ValueError as error:
                if last:
                    return
                raise self._damaged(number, str(error)) from error
            place = (record.step, record.split == "test")
            if place <= latest:
                raise self._damaged(number, f"its step {record.step} ({record.split}) is not after the line before")
            latest = place
            yield number, record

    def _damaged(self, number: int, what: str) -> TrainingError:
        return TrainingError(f"{self.path}: line {number} is damaged ({what}); {_RESTORE}")

    def until(self, position: int, trainer: Trainer) -> list[Record]:
        """The series until the step ``position`` (-1: nothing of it), complete and as ``trainer`` would have made it.

        Raises:
            TrainingError: as :meth:`numbered`, or a record is missing, or is not one of such a run.
        """
        missing = trainer.planned_records(position) if position >= 0 else iter(())
        awaited = next(missing, None)
        kept: list[Record] = []
        figures: dict[str, list[str]] = {"train": ["loss", "lr"]}
        for number, record in self.numbered():
            if not math.isclose(record.epoch, record.step / trainer.batcher.per_epoch, rel_tol=1e-9):
                raise self._damaged(number, f"step {record.step} is not in epoch {record.epoch}")
            names = sorted(record.values)
            if record.split == "test" and "test" not in figures and trainer.task.objective.metric in names:
                figures["test"] = names
            expected = figures.get(record.split, [trainer.task.objective.metric])
            if names != expected:
                raise self._damaged(number, f"its figures are {', '.join(names)}, must be {', '.join(expected)}")
            if record.step > position:
                continue
            kept.append(record)
            if (record.step, record.split) == awaited:
                awaited = next(missing, None)
        if awaited is not None:
            step, split = awaited
            raise TrainingError(
                f"{self.path}: has no {split} record of step {step}, but the checkpoint is of step {position}; {_RESTORE}"
            )
        return kept
