"""``python -m fuzz``: judge random calls of every op, and random models, and write what was found.

Ends with 1 where a fault was found. Ctrl-C ends it early; ``--resume`` goes on from what the summary holds.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from fuzz.judge import FAULTS
from fuzz.pool import outcomes
from fuzz.summary import Summary
from rich.console import Console

SUMMARY = Path(__file__).resolve().parents[2] / "bench" / "results" / "fuzz.json"
MODELS_OF_ALL = 200  # calls of ops for every model
WRITE_EVERY = 10.0  # seconds


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000, help="calls of ops")
    parser.add_argument("--models", type=int, help=f"models; one for every {MODELS_OF_ALL} calls by default")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--out", type=Path, default=SUMMARY, help="the summary's file")
    parser.add_argument("--resume", action="store_true", help="go on where that file ends")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    options = arguments(given)
    console = Console(soft_wrap=True)
    summary = Summary.read(options.out) if options.resume else Summary(options.seed)
    models = options.calls // MODELS_OF_ALL if options.models is None else options.models
    wanted = {"ops": options.calls, "models": models}
    end = time.monotonic() + 60 * options.minutes
    try:
        for kind, count in wanted.items():
            _run(kind, count - summary.done[kind], summary, options.out, end, console)
    except KeyboardInterrupt:
        console.print("stopped; --resume goes on")
    summary.write(options.out)
    summary.show(console)
    return int(summary.total(FAULTS) > 0)


def _run(kind: str, count: int, summary: Summary, out: Path, end: float, console: Console) -> None:
    last = written = time.monotonic()
    for outcome in outcomes(kind, summary.seed + summary.done[kind], count):
        new = summary.add(kind, outcome)
        now = time.monotonic()
        summary.seconds[kind] += now - last
        last = now
        if new:
            console.rule(f"{outcome.judgement}: {outcome.op}, seed {outcome.seed}")
            console.print(outcome.detail, "\n", outcome.snippet, markup=False, highlight=False)
        if now > written + WRITE_EVERY or new:
            summary.write(out)
            written = now
        if now > end:
            return


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
