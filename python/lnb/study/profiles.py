"""Measured profiles of a training step, as ``bench/step_profile.py`` and ``bench/conv_product.py`` write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnb.study.environment import environment
from lnb.training import TrainingError

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
        raw = json.loads(path.read_text(encoding="utf-8"))
        profile = Profile(raw["kind"], raw["title"], raw["machine"], raw["results"])
        if profile.kind not in KINDS:
            raise ValueError(f"kind={profile.kind!r} must be one of {', '.join(KINDS)}")
        _check(profile)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(
            f"{path}: no profile of a training step ({type(error).__name__}: {error}); make it with bench/step_profile.py "
            f"or bench/conv_product.py and --json"
        ) from error
    return profile


def _check(profile: Profile) -> None:
    """Touch every figure that the report will show."""
    if profile.kind == "memory":
        for row in profile.results:
            _ = str(row["optimizer"]), bool(row["checkpointed"]), {int(b): float(p) for b, p in row["peaks"].items()}
        return
    for rows in profile.results.values():
        for row in rows.values():
            if row is not None:
                _ = [
                    float(row[name]) for name in (PARTS if profile.kind == "parts" else ("ratio", "low", "high", "ms"))
                ]


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
