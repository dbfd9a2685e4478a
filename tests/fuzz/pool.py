"""Running cases in a process of their own that may die: the next one goes on behind the case that killed it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.judge import CRASH
from fuzz.model_cases import name_of, snippet_of_model
from fuzz.registry import case_of
from fuzz.worker import snippet_of_op

TESTS = Path(__file__).resolve().parents[1]  # from where `python -m fuzz` finds this package, and not the source tree
BATCH = 20_000  # cases of one process, so that nothing that leaks grows for long


@dataclass(frozen=True)
class Outcome:
    """One case judged."""

    seed: int
    op: str
    judgement: str
    detail: str
    snippet: str


def outcomes(kind: str, first: int, count: int, plant: str = "", seconds: float = 600.0) -> Iterator[Outcome]:
    """Judge so many cases from ``first``.

    Args:
        kind: ``"ops"``, ``"ops NAME"`` for one of them, or ``"models"``.
        first, count: seeds.
        plant: the name of a fault to plant in every process.
        seconds: how long one case may take before its process is killed.
    """
    end = first + count
    while first < end:
        batch = min(BATCH, end - first)
        done = yield from _of_process(kind, first, batch, plant, seconds)
        first += done


def _of_process(kind: str, first: int, count: int, plant: str, seconds: float) -> Iterator[Outcome]:
    """The outcomes of one process; returns how many there were."""
    command = [sys.executable, "-m", "fuzz.worker", kind, str(first), str(count), *([plant] if plant else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=TESTS)
        assert process.stdout is not None
        done, begun, timed_out = 0, None, False
        try:
            for line in _lines(process.stdout.fileno(), seconds):
                if line is None:
                    timed_out = True
                    break
                if line.startswith(b"begin "):
                    begun = int(line.split()[1])
                else:
                    yield Outcome(*json.loads(line))
                    done, begun = done + 1, None
        finally:
            process.kill()
            code = process.wait()
        if done == count:
            return count
        errors.seek(0)
        said = errors.read()[-3000:].decode(errors="replace")
        if begun is None:
            raise RuntimeError(f"the process ended with {code} before its next case: {said}")
    why = f"did not end within {seconds:g} s" if timed_out else f"ended the process with {code}"
    yield _crash(kind, begun, f"{why}\n{said}")
    return done + 1


def _crash(kind: str, seed: int, detail: str) -> Outcome:
    if kind == "models":
        return Outcome(seed, name_of(seed), CRASH, detail, snippet_of_model(seed, CRASH))
    only = kind.removeprefix("ops").strip() or None
    text = snippet_of_op(seed, only, CRASH, detail.partition("\n")[0])
    return Outcome(seed, case_of(seed, only).op, CRASH, detail, text)


def _lines(file: int, seconds: float) -> Iterator[bytes | None]:
    """The lines of a pipe until its end; None where nothing came for so long. The first may take longer: imports."""
    rest, patience = b"", seconds + 300
    while True:
        if not select.select([file], [], [], patience)[0]:
            yield None
            return
        data = os.read(file, 1 << 16)
        if not data:
            return
        patience = seconds
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
