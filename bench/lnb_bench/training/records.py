"""One point of a metric series, and its check when it comes from a file."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Record:
    """One point of a metric series.

    Attributes:
        step: optimizer steps made.
        epoch: passes over the training examples made.
        split: ``"train"`` (mean loss since the last such record) or ``"test"``.
        values: figures of merit by name.
        seconds: time spent training, without evaluation; the only field that differs when a run is repeated.
    """

    step: int
    epoch: float
    split: str
    values: dict[str, float]
    seconds: float


def record_from(raw: Any) -> Record:
    """The record of the parsed JSON ``raw``, with every field checked.

    Raises:
        ValueError: a field is missing, unknown, or of the wrong type; the message names it.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"it holds {type(raw).__name__}, not the fields of a record")
    names = [entry.name for entry in dataclasses.fields(Record)]
    for name in names:
        if name not in raw:
            raise ValueError(f"it has no field {name!r}")
    for name in raw:
        if name not in names:
            raise ValueError(f"it has the unknown field {name!r}")
    step, split, values = raw["step"], raw["split"], raw["values"]
    if not is_count(step):
        raise ValueError(f"step={shortened(step)} must be a whole number of at least 0")
    for name in ("epoch", "seconds"):
        if not (is_number(raw[name]) and 0 <= raw[name] < math.inf):
            raise ValueError(f"{name}={shortened(raw[name])} must be a finite number of at least 0")
    if split not in SPLITS:
        raise ValueError(f"split={shortened(split)} must be one of {', '.join(SPLITS)}")
    if not isinstance(values, dict) or not values:
        raise ValueError(f"values={shortened(values)} must be a table of figures")
    for name, value in values.items():
        if not is_number(value):
            raise ValueError(f"values[{name!r}]={shortened(value)} must be a number")
    return Record(step, raw["epoch"], split, values, raw["seconds"])


def is_count(value: Any) -> bool:
    """Whether ``value`` is a whole number from 0 to the largest of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number, NaN and infinity included, that fits a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 1 << 1023


def shortened(value: Any) -> str:
    """``repr(value)``, cut where a damaged file would fill the screen."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; an integer of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
