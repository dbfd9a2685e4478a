"""Kills ``lnb-bench train`` at many moments, resumes it, and compares with a run that was left alone.

    python tests/reliability/kills.py [--kills 200] [--seed 0] [--json FILE]

A run is killed again and again, by SIGKILL, until it is complete; metrics, parameters and the last checkpoint must then be,
bit for bit, those of the run that nobody killed. A kill falls on a line of a training step, on a line that writes a file,
in the middle of a file's content, on a line that resumes, or at a time of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trials
from moments import Lines, tear_write

KINDS = ("step", "write", "torn", "resume", "clock")


class Campaign:
    """The runs of one folder and what became of them.

    Args:
        folder: for all runs.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.completed = 0
        self.differing: list[str] = []
        self.lines: dict[tuple[str, str], int] = {}
        self.seconds: dict[str, float] = {}
        self.whole: dict[str, object] = {}
        trials.warm_up()
        for run in trials.RUNS:
            self._measure(run)

    def _measure(self, run: str) -> None:
        """Make the run that is left alone, and count the lines of each phase."""
        out = self.folder / f"whole {run}"
        started = time.monotonic()
        assert trials.in_child(partial(trials.train, run, out)) == 0, f"{run}: the run itself fails"
        self.seconds[run] = time.monotonic() - started
        self.whole[run] = trials.outcome(out)
        for phase in ("step", "write", "resume"):
            counted = self.folder / "counted"

            def count(phase: str = phase, counted: Path = counted) -> None:
                lines = Lines(phase, None)
                try:
                    with lines:
                        trials.train(run, out if phase == "resume" else self.folder / f"counting {phase} {run}")
                finally:
                    counted.write_text(str(lines.seen))

            assert trials.in_child(count) == 0
            self.lines[run, phase] = int(counted.read_text())

    def until_complete(self, run: str, wanted: int) -> None:
        """Kill a run until ``wanted`` kills are made in all, or the run is complete; then complete and compare it."""
        out = self.folder / f"killed {run}"
        shutil.rmtree(out, ignore_errors=True)
        complete = False
        log = self.folder / "output.txt"
        while not complete and sum(self.kills.values()) < wanted:
            kind = self.random.choice(KINDS)
            if kind == "resume" and not (out / "run.json").exists():
                continue
            code = self._one(kind, run, out, log)
            if code == -signal.SIGKILL:
                self.kills[kind] += 1
            elif code == 0:
                complete = True
            else:
                self.differing.append(f"{run}: exit code {code} after a kill: {log.read_text()[-2000:]}")
                return
        code = trials.in_child(partial(trials.train, run, out), log)
        if code != 0:
            self.differing.append(f"{run}: exit code {code} on the last resumption: {log.read_text()[-2000:]}")
        elif not trials.same(trials.outcome(out), self.whole[run]):
            self.differing.append(f"{run}: the completed run differs from the whole one")
        self.completed += 1

    def _one(self, kind: str, run: str, out: Path, log: Path) -> int:
        log.unlink(missing_ok=True)
        if kind == "clock":
            child = trials.start(partial(trials.train, run, out), log)
            time.sleep(self.random.uniform(0, self.seconds[run] / 2))
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if kind == "torn":
            body = partial(self._torn, self.random.randint(1, 8), self.random.random(), run, out)
        else:
            share = 1 if kind == "resume" else 5  # so that a run is killed several times on its way
            at = self.random.randint(1, self.lines[run, kind] // share)
            body = partial(self._at_line, kind, at, run, out)
        return trials.in_child(body, log)

    @staticmethod
    def _torn(at: int, share: float, run: str, out: Path) -> None:
        tear_write(at, share)
        trials.train(run, out)

    @staticmethod
    def _at_line(phase: str, at: int, run: str, out: Path) -> None:
        with Lines(phase, at):
            trials.train(run, out)


def campaign(kills: int, seed: int, folder: Path, progress: Callable[[str], None] = lambda _: None) -> Campaign:
    """Make ``kills`` kills, spread evenly over the runs."""
    made = Campaign(folder, seed)
    while sum(made.kills.values()) < kills and not made.differing:
        for run in trials.RUNS:
            if sum(made.kills.values()) < kills:
                made.until_complete(run, kills)
                progress(f"{sum(made.kills.values())} kills, {made.completed} runs completed")
    return made


def main() -> int:
    """Run what the command line asks for; 1 where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = campaign(options.kills, options.seed, Path(folder), lambda text: print(text, flush=True))
    result = {
        "kills": dict(sorted(made.kills.items())),
        "total": sum(made.kills.values()),
        "runs_completed": made.completed,
        "differing": made.differing,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(made.differing))


if __name__ == "__main__":
    sys.exit(main())
