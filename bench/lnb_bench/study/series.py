"""Metric series as columns: a third of the size of the records, and what a table of data wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lnb_bench.training import Record
from lnb_bench.training.records import record_from, shortened

FIXED = ("step", "epoch", "seconds")
Columns = dict[str, dict[str, list[Any]]]


def to_columns(records: Sequence[Record]) -> Columns:
    """The columns of each split: step, epoch, seconds (to the microsecond), and one for each figure."""
    columns: Columns = {}
    for record in records:
        split = columns.setdefault(record.split, {})
        row = {"step": record.step, "epoch": record.epoch, "seconds": round(record.seconds, 6), **record.values}
        for name, value in row.items():
            split.setdefault(name, []).append(value)
    return columns


def to_records(columns: Any) -> tuple[Record, ...]:
    """The records in the order of training; of one step the training record comes before the test record.

    Raises:
        ValueError: the columns are damaged.
    """
    if not isinstance(columns, dict) or not all(isinstance(table, dict) for table in columns.values()):
        raise ValueError("its records are not tables of columns")
    records = []
    for split, table in columns.items():
        for name in (*FIXED, *table):
            if not isinstance(table.get(name), list):
                raise ValueError(f"the column {shortened(name)} of its {split} records must be a list")
        if len({len(column) for column in table.values()}) > 1:
            raise ValueError(f"the columns of its {split} records have different lengths")
        figures = [name for name in table if name not in FIXED]
        for row in range(len(table["step"])):
            values = {name: table[name][row] for name in figures}
            fixed = {name: table[name][row] for name in FIXED}
            records.append(record_from({**fixed, "split": split, "values": values}))
    return tuple(sorted(records, key=lambda record: (record.step, record.split == "test")))
