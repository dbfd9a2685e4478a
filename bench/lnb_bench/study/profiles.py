"""Measured profiles of a training step, as ``bench/step_profile.py`` and ``bench/conv_product.py`` write them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnb.reading import parse_json, read_text, reason
from lnb_bench.study.environment import environment
from lnb_bench.training import TrainingError
from lnb_bench.training.records import is_number, shortened

# What one result is, by the kind of the profile.
#   parts:   {model: {optimizer: {part of a step: milliseconds}}}
#   memory:  [{"optimizer": ..., "checkpointed": bool, "peaks": {batch: bytes}}]
#   product: {layer: {method: {"ratio": to the layer's backward pass, "low": .., "high": .., "ms": ..}, or null if missing}}
KINDS = ("parts", "memory", "product")
PARTS = ("forward", "backward", "statistics", "solve", "update")


@dataclass(frozen=True)
class Profile:
    """One result file.

    Attributes:
        kind: one of :data:`KINDS`.
        title: what was measured, in words.
        machine: processor, threads and versions.
        results: as the kind has it.
    """

    kind: str
    title: str
    machine: str
    results: Any


def load_profile(path: Path) -> Profile:
    """Read a result file.

    Raises:
        TrainingError: it cannot be read, or is no profile.
    """
    try:
        raw = parse_json(read_text(path), finite=True)
        profile = Profile(raw["kind"], raw["title"], raw["machine"], raw["results"])
        if profile.kind not in KINDS:
            raise ValueError(f"kind={profile.kind!r} must be one of {', '.join(KINDS)}")
        _check(profile)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(
            f"{path}: no profile of a training step ({type(error).__name__}: {error}); make it with bench/step_profile.py "
            f"or bench/conv_product.py and --json"
        ) from error
    return profile


def _check(profile: Profile) -> None:
    """Require every figure that the report will show."""
    for name in ("title", "machine"):
        if not isinstance(getattr(profile, name), str):
            raise ValueError(f"{name}={shortened(getattr(profile, name))} must be a text")
    if not profile.results:
        raise ValueError("it has no results")
    if profile.kind == "memory":
        batches = list(profile.results[0]["peaks"])
        for row in profile.results:
            if not isinstance(row["optimizer"], str) or not isinstance(row["checkpointed"], bool):
                raise ValueError("a row has no optimizer or does not say whether it was checkpointed")
            if list(row["peaks"]) != batches or not batches or not all(batch.isdecimal() for batch in batches):
                raise ValueError(f"the peaks of {row['optimizer']} are not of the batches {', '.join(batches)}")
            _require_numbers(row["peaks"], batches)
        return
    names = PARTS if profile.kind == "parts" else ("ratio", "low", "high", "ms")
    columns: list[str] | None = None
    for rows in profile.results.values():
        if not rows:
            raise ValueError("a table has no rows")
        if profile.kind == "product" and columns not in (None, list(rows)):
            raise ValueError(f"the methods of all layers must be the same: {', '.join(rows)}")
        columns = list(rows)
        for row in rows.values():
            if row is not None or profile.kind == "parts":
                _require_numbers(row, names)
        if profile.kind == "parts" and sum(next(iter(rows.values()))[name] for name in names) <= 0:
            raise ValueError("the first row takes no time")


def _require_numbers(row: Any, names: Iterable[str]) -> None:
    for name in names:
        if not is_number(row[name]):
            raise ValueError(f"{name}={shortened(row[name])} must be a number")


def save_profile(path: Path, kind: str, title: str, results: Any, **versions: str) -> None:
    """Write a result file that :func:`load_profile` reads; ``versions`` of further packages go beside ours.

    Raises:
        OSError: the file cannot be written.
    """
    where = environment()
    packages = ", ".join(f"{name} {version}" for name, version in {**where["versions"], **versions}.items())
    threads = f"{where['threads']} thread" + ("s" if where["threads"] != 1 else "")
    machine = f"{where['processor']}, {where['cores']} cores, {threads}; {packages}; {where['date'][:10]}"
    content = {"kind": kind, "title": title, "machine": machine, "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
