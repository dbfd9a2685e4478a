"""Runs of ``lnb-bench train`` in forked children: torch is imported once, and a child may be killed at any moment."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lnb_bench.cli.app import app
from lnb_bench.training.checkpoint import load_checkpoint

# Neither needs a data folder. Both write a checkpoint every third step, so that kills fall into many of them.
RUNS = {
    "digits, lnb": ("--task", "digits", "--width", "12", "--batch-size", "32", "--steps", "45", "--schedule", "cosine",
                    "--evaluate-every", "7", "--log-every", "4", "--set", "refresh_every=5"),
    "matrix-factorization, lnb-paper": ("--task", "matrix-factorization", "--optimizer", "lnb-paper", "--steps", "45",
                                        "--evaluate-every", "9", "--log-every", "5"),
}  # fmt: skip
EVERY = ("--checkpoint-every", "3")
LIMIT = 120  # seconds that one child may take


def train(run: str, out: Path) -> None:
    """Start or resume ``run`` in this process; ends it by ``SystemExit``."""
    app(["train", *RUNS[run], *EVERY, "--resume", "--out", str(out)])


@functools.cache
def warm_up() -> None:
    """Import all that a run needs, by making a short one, so that the children need not."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for i, run in enumerate(RUNS.values()):
            app(["train", *run, "--steps", "6", "--out", f"{folder}/{i}"], standalone_mode=False)


def in_child(body: Callable[[], None], errors: Path | None = None) -> int:
    """Run ``body`` in a forked child; its exit code, or minus the signal that ended it.

    Args:
        body: what to run; ``SystemExit`` gives the exit code, any other exception 99.
        errors: file that takes the child's output.
    """
    child = start(body, errors)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def start(body: Callable[[], None], errors: Path | None = None) -> int:
    """The process number of a forked child that runs ``body``."""
    warm_up()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        signal.alarm(LIMIT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(errors or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        torch.set_num_threads(1)
        body()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcome(out: Path) -> dict[str, Any]:
    """All that a finished run leaves behind, without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    state = load_checkpoint(out / "checkpoint.lnb")
    return {
        "series": [{name: value for name, value in line.items() if name != "seconds"} for line in lines],
        "state": {name: value for name, value in state.items() if name != "seconds"},
        "model": torch.load(out / "model.pt", weights_only=True),
        "files": sorted(path.name for path in out.iterdir()),
    }


def same(one: Any, other: Any) -> bool:
    """Whether two outcomes are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and _bits(one) == _bits(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(same(a, b) for a, b in zip(one, other, strict=True))
        )
    return bool(one == other)


def _bits(tensor: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes()
