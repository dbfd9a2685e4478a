"""Training on a disk that fills up: at every checkpoint and metric line the run ends by a clear error, and goes on later.

The disk is a small tmpfs where this process may mount one; else the limit on the size of a file, at which the system
also cuts writes short. ``python tests/reliability/full_disk.py [--trials 40]``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trials

from lnb_bench.training.checkpoint import load_checkpoint

RUN = "digits, lnb"


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of ``size`` bytes at ``folder``; False where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def limited(size: int, run: str, out: Path) -> None:
    """Train where no file may grow beyond ``size`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    trials.train(run, out)


def judge(code: int, log: Path, out: Path, whole: dict[str, object], run: str = RUN) -> str:
    """What became of a run on a full disk, and of its resumption with room; "" where all is as promised."""
    message = " ".join(log.read_text().split()) if log.exists() else ""
    if code not in (0, 1) or "Traceback" in message:
        return f"exit code {code}: {message[-1000:]}"
    if code == 1 and "cannot be written" not in message:
        return f"the error does not say that a file cannot be written: {message}"
    if (out / "checkpoint.lnb").exists():
        load_checkpoint(out / "checkpoint.lnb")  # whole, or this raises
    if leftovers := list(out.glob(".*.tmp")):
        return f"{leftovers} stayed"
    log.unlink(missing_ok=True)
    if trials.in_child(partial(trials.train, run, out), log) != 0:
        return f"does not go on with room again: {log.read_text()[-1000:]}"
    return "" if trials.same(trials.outcome(out), whole) else "the resumed run differs from the whole one"


def campaign(count: int, seed: int, folder: Path) -> dict[str, object]:
    """Let ``count`` runs meet a full disk at random moments."""
    chosen = random.Random(seed)
    whole_at, log = folder / "whole", folder / "log"
    assert trials.in_child(partial(trials.train, RUN, whole_at)) == 0
    whole = trials.outcome(whole_at)
    checkpoint, model = ((whole_at / name).stat().st_size for name in ("checkpoint.lnb", "model.pt"))
    failures: list[str] = []
    refused = disks = 0
    for i in range(count):
        out = folder / f"run{i}"
        # Two checkpoints, the model and a few pages are what a whole run needs at most.
        with small_disk(out, chosen.randrange(8192, 2 * checkpoint + model + 32768)) as mounted:
            size = chosen.randrange(16, checkpoint + 1000)
            body = partial(trials.train, RUN, out) if mounted and i % 2 else partial(limited, size, RUN, out)
            disks += mounted and i % 2
            code = trials.in_child(body, log)
            refused += code == 1
            kept = folder / f"kept{i}"
            shutil.copytree(out, kept)
        if problem := judge(code, log, kept, whole):
            failures.append(f"trial {i}: {problem}")
        shutil.rmtree(kept)
    return {"trials": count, "on_a_full_tmpfs": disks, "ended_by_an_error": refused, "failures": failures}


def main() -> int:
    """Run what the command line asks for; 1 where something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(options.trials, options.seed, Path(folder))
    print(json.dumps(result, indent=1))
    return int(bool(result["failures"]))


if __name__ == "__main__":
    sys.exit(main())
