"""The check of kept outcomes: what a report computes with must have the right types, and be a whole run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lnb_bench.study.clocks import CLOCK_WORDS
from lnb_bench.training import Record
from lnb_bench.training.records import is_count, is_number, shortened

_FIELDS = ("cell", "labels", "records", "metric", "higher_is_better", "failure", "wall", "environment")
_OPTIONAL = ("peak_bytes",)  # came later


def check_outcome(raw: Any) -> dict[str, Any]:
    """Require the fields of an outcome, all but its records checked.

    Returns:
        ``raw``.

    Raises:
        ValueError: one is missing, unknown or of the wrong type; the message names it.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"it holds {type(raw).__name__}, not the fields of a run")
    for name in _FIELDS:
        if name not in raw:
            raise ValueError(f"it has no field {name!r}")
    for name in raw:
        if name not in (*_FIELDS, *_OPTIONAL):
            raise ValueError(f"it has the unknown field {shortened(name)}")
    labels, peak = raw["labels"], raw.get("peak_bytes")
    _require(raw, "cell", isinstance(raw["cell"], dict), "a table")
    pair = isinstance(labels, list) and len(labels) == 2 and all(isinstance(label, str) for label in labels)
    _require(raw, "labels", pair, "two texts")
    _require(raw, "metric", isinstance(raw["metric"], str), "a text")
    _require(raw, "higher_is_better", isinstance(raw["higher_is_better"], bool), "true or false")
    _require(raw, "failure", isinstance(raw["failure"], str), "a text")
    _require(raw, "wall", is_number(raw["wall"]) and 0 <= raw["wall"] < math.inf, "a finite number")
    _require(raw, "peak_bytes", peak is None or is_count(peak), "a whole number")
    _check_environment(raw["environment"])
    return raw


def _require(table: dict[str, Any], name: str, fits: bool, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{name}={shortened(table.get(name))} must be {wanted}")


def _check_environment(where: Any) -> None:
    if not isinstance(where, dict):
        raise ValueError(f"environment={shortened(where)} must be a table")
    versions = where.get("versions")
    texts = isinstance(versions, dict) and all(isinstance(version, str) for version in versions.values())
    _require(where, "versions", texts, "a table of texts")
    _require(where, "processor", isinstance(where.get("processor"), str), "a text")
    _require(where, "cores", where.get("cores") is None or is_count(where["cores"]), "a whole number")
    _require(where, "threads", is_count(where.get("threads")), "a whole number")
    clock = where.get("clock")
    _require(where, "clock", isinstance(clock, str) and clock in CLOCK_WORDS, f"one of {', '.join(CLOCK_WORDS)}")


def check_series(records: Sequence[Record], raw: dict[str, Any]) -> None:
    """Require that ``records`` are the whole series of the outcome ``raw``, or that there are none and it says why.

    Raises:
        ValueError: they are not.
    """
    if bool(records) == bool(raw["failure"]):
        raise ValueError("it has records and a failure" if records else "it has neither records nor a failure")
    if not records:
        return
    tests = [record for record in records if record.split == "test"]
    last = records[-1]
    if len(tests) < 2 or tests[0] is not records[0] or tests[0].step != 0 or tests[-1] is not last:
        raise ValueError("its records do not go from an evaluation at step 0 to one at the end")
    previous = records[0]
    for record in records[1:]:
        if (record.step, record.split == "test") <= (previous.step, previous.split == "test"):
            raise ValueError(f"its records are not in order at step {record.step}")
        if record.seconds < previous.seconds:
            raise ValueError(f"seconds={record.seconds!r} at step {record.step} are less than before")
        if not math.isclose(record.epoch * last.step, last.epoch * record.step, rel_tol=1e-9):
            raise ValueError(f"step {record.step} is not in epoch {record.epoch}")
        previous = record
    for record in records:
        first = tests[0] if record.split == "test" else next(r for r in records if r.split == "train")
        if record.values.keys() != first.values.keys():
            raise ValueError(
                f"its figures at step {record.step} are {', '.join(record.values)}, before they are {', '.join(first.values)}"
            )
        for name, value in record.values.items():
            if not math.isfinite(value):
                raise ValueError(f"{name}={value!r} at step {record.step} must be finite")
    if raw["metric"] not in tests[0].values:
        raise ValueError(f"metric={raw['metric']!r} must be one of its figures {', '.join(tests[0].values)}")
