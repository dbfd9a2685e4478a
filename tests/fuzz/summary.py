"""The counts of a run: by op and judgement, with one program per kind of fault; as JSON, and as a table."""

from __future__ import annotations

import json
import platform
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz.judge import CLASSES, FAULTS
from fuzz.pool import Outcome
from rich.console import Console
from rich.table import Table

import lnb_kernels as lk

KEPT = 3  # programs of one kind of fault


@dataclass
class Summary:
    """What a run has found so far.

    Attributes:
        seed: of the first case; the cases of a run have consecutive seeds.
        done: cases judged, by ``"ops"`` and ``"models"``.
        seconds: spent on them.
        counts: cases by op and judgement.
        faults: by their kind: how many, and the first of them with their programs.
    """

    seed: int
    done: dict[str, int] = field(default_factory=lambda: {"ops": 0, "models": 0})
    seconds: dict[str, float] = field(default_factory=lambda: {"ops": 0.0, "models": 0.0})
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, outcome: Outcome) -> bool:
        """Count an outcome; returns whether it is a fault of a new kind."""
        self.done[kind] += 1
        self.counts.setdefault(outcome.op, Counter())[outcome.judgement] += 1
        if outcome.judgement not in FAULTS:
            return False
        like = re.sub(r"-?\d[\d.e+-]*|\[.*?\]|\(.*?\)", "#", outcome.detail.partition("\n")[0])[:90]
        found = self.faults.setdefault(f"{outcome.op}: {outcome.judgement}: {like}", {"count": 0, "examples": []})
        found["count"] += 1
        if len(found["examples"]) < KEPT:
            found["examples"].append({"seed": outcome.seed, "detail": outcome.detail, "snippet": outcome.snippet})
        return bool(found["count"] == 1)

    def total(self, judgements: tuple[str, ...]) -> int:
        """Cases of these judgements."""
        return sum(counts[judgement] for counts in self.counts.values() for judgement in judgements)

    def write(self, path: Path) -> None:
        """Write everything as JSON; a run that is killed leaves a whole file."""
        content = {
            "date": time.strftime("%Y-%m-%d"),
            "versions": {
                "lnb_kernels": lk.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "machine": platform.machine(),
            "seed": self.seed,
            "done": self.done,
            "seconds": {kind: round(seconds, 1) for kind, seconds in self.seconds.items()},
            "totals": {judgement: self.total((judgement,)) for judgement in CLASSES},
            "counts": {op: dict(sorted(counts.items())) for op, counts in sorted(self.counts.items())},
            "faults": self.faults,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(content, indent=1) + "\n")
        draft.replace(path)

    @staticmethod
    def read(path: Path) -> Summary:
        """What :meth:`write` wrote."""
        content = json.loads(path.read_text())
        counts = {op: Counter(found) for op, found in content["counts"].items()}
        return Summary(content["seed"], content["done"], content["seconds"], counts, content["faults"])

    def show(self, console: Console) -> None:
        """Print the counts by op."""
        used = [judgement for judgement in CLASSES if self.total((judgement,))]
        table = Table("case", *used)
        for op, counts in sorted(self.counts.items()):
            table.add_row(op, *(str(counts[judgement] or "") for judgement in used))
        table.add_row("all", *(str(self.total((judgement,))) for judgement in used), style="bold")
        console.print(table)
        for kind, count in self.done.items():
            if count:
                console.print(
                    f"{count} {kind} in {self.seconds[kind]:.0f} s: {count / max(self.seconds[kind], 1e-9):.0f} per second"
                )
        for kind, found in self.faults.items():
            console.print(f"{found['count']} x {kind} (seed {found['examples'][0]['seed']})", markup=False)
