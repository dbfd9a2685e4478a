"""The report of what each parameter got: which metric, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class CoverageRow:
    """One parameter: its name, shape (None: not known yet), metric, and the reason."""

    name: str
    shape: tuple[int, ...] | None
    metric: str
    reason: str

    @property
    def size(self) -> str:
        """The shape in words."""
        return "unknown" if self.shape is None else "x".join(map(str, self.shape)) or "scalar"

    def __str__(self) -> str:
        return f"{self.name} {self.size}: {self.metric} ({self.reason})"


@dataclass(frozen=True)
class Coverage:
    """The table that :meth:`lnb.LNB.coverage` returns: iterate over its rows, or print it."""

    rows: tuple[CoverageRow, ...]

    def __iter__(self) -> Iterator[CoverageRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> CoverageRow:
        """The row of the parameter called ``name``."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        table = [("parameter", "shape", "metric", "why")]
        table += [(row.name, row.size, row.metric, row.reason) for row in self.rows]
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]])
            for line in table
        )
