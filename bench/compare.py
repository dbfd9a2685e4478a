"""Compare two files of `make bench ARGS=--benchmark-json=FILE`: fails where a benchmark got slower beyond its noise.

    python bench/compare.py BASE.json NEW.json [--tolerance 0.10] [--sigmas 3]

A benchmark is slower if its median grew by more than the tolerance AND by more than `sigmas` standard errors of the two
medians together, these estimated from the interquartile ranges of the rounds. One that is in BASE and not in NEW counts
as a failure: it may have been lost because it no longer runs. Times of different machines do not compare, and the command
says so; exit codes are 0 (no regression), 1 (regression or lost benchmark), 2 (files that cannot be compared).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The median's standard error is 1.253 sigma / sqrt(n) for a normal distribution, and sigma = IQR / 1.349.
_ERROR_OF_MEDIAN = 1.253 / 1.349


@dataclass(frozen=True)
class Change:
    name: str
    base: float  # seconds, medians
    new: float
    error: float  # standard error of the difference
    slower: bool

    @property
    def ratio(self) -> float:
        return self.new / self.base


def error_of_median(stats: dict[str, float]) -> float:
    return _ERROR_OF_MEDIAN * stats["iqr"] / math.sqrt(max(stats["rounds"], 1))


def compare(
    base: dict[str, Any], new: dict[str, Any], tolerance: float, sigmas: float
) -> tuple[list[Change], list[str]]:
    """The changes of the benchmarks in both files, and the names of those that NEW lost."""
    before, after = ({b["fullname"]: b["stats"] for b in run["benchmarks"]} for run in (base, new))
    changes = []
    for name in sorted(before.keys() & after.keys()):
        old, current = before[name]["median"], after[name]["median"]
        error = math.hypot(error_of_median(before[name]), error_of_median(after[name]))
        slower = current > old * (1 + tolerance) and current - old > sigmas * error
        changes.append(Change(name, old, current, error, slower))
    return changes, sorted(before.keys() - after.keys())


def load(path: Path) -> dict[str, Any]:
    """The file's content.

    Raises:
        ValueError: it cannot be read, or is no benchmark file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all({"fullname", "stats"} <= benchmark.keys() for benchmark in content["benchmarks"]):
            raise KeyError("fullname, stats")
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of --benchmark-json: {error!r}") from error
    return dict(content)


def machine(run: dict[str, Any]) -> str:
    return str(run.get("machine_info", {}).get("cpu", {}).get("brand_raw", "unknown"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.10, help="growth of a median that is always allowed")
    parser.add_argument("--sigmas", type=float, default=3.0, help="standard errors that a growth must exceed")
    options = parser.parse_args(arguments)
    try:
        base, new = load(options.base), load(options.new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if machine(base) != machine(new):
        print(f"note: different machines, {machine(base)} and {machine(new)}: times do not compare")
    changes, lost = compare(base, new, options.tolerance, options.sigmas)
    if not changes and not lost:
        print("no benchmark is in both files", file=sys.stderr)
        return 2
    for change in changes:
        verdict = "SLOWER" if change.slower else ""
        noise = change.error / change.base
        print(f"{change.ratio:6.2f}x +-{noise:5.2f}  {1e3 * change.new:10.3f} ms  {change.name}  {verdict}".rstrip())
    for name in lost:
        print(f"LOST    {name}")
    bad = sum(change.slower for change in changes) + len(lost)
    print(f"{len(changes)} compared, {bad} slower or lost")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
