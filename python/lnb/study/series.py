"""Metric series as columns: a third of the size of the records, and what a table of data wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lnb.training import Record

FIXED = ("step", "epoch", "seconds")
Columns = dict[str, dict[str, list[Any]]]


def to_columns(records: Sequence[Record]) -> Columns:
    """By split, the columns step, epoch, seconds (to the microsecond) and one for each figure."""
    columns: Columns = {}
    for record in records:
        split = columns.setdefault(record.split, {})
        row = {"step": record.step, "epoch": record.epoch, "seconds": round(record.seconds, 6), **record.values}
        for name, value in row.items():
            split.setdefault(name, []).append(value)
    return columns


def to_records(columns: Columns) -> tuple[Record, ...]:
    """The records in the order of training; of one step the training record comes before the test record.

    Raises:
        KeyError, TypeError, ValueError: the columns are damaged.
    """
    records = []
    for split, table in columns.items():
        figures = [name for name in table if name not in FIXED]
        for step, epoch, seconds, *values in zip(
            *(table[name] for name in FIXED), *(table[name] for name in figures), strict=True
        ):
            records.append(Record(step, epoch, split, dict(zip(figures, values, strict=True)), seconds))
    return tuple(sorted(records, key=lambda record: (record.step, record.split == "test")))
