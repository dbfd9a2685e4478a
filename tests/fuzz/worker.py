"""A process that judges cases one after the other and says so on its standard output; it may die of one.

``python -m fuzz.worker KIND FIRST COUNT [PLANT]``, where KIND is ``models``, ``ops`` or ``ops NAME``. Before a case it writes
``begin SEED``, after it a line of JSON.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback

import torch
from fuzz import model_cases, plants
from fuzz.case import snippet
from fuzz.judge import FAULTS, HARNESS, judge
from fuzz.registry import case_of


def describe_op(seed: int, only: str | None = None) -> tuple[str, str, str, str]:
    """``(op, judgement, detail, snippet)`` of the case of a seed; of this op alone."""
    case = case_of(seed, only)
    try:
        verdict = judge(case)
    except Exception:
        return case.op, HARNESS, traceback.format_exc(limit=-6), ""
    if verdict.judgement not in FAULTS:
        return case.op, verdict.judgement, "", ""
    return case.op, verdict.judgement, verdict.detail, snippet_of_op(seed, only, verdict.judgement, verdict.detail)


def snippet_of_op(seed: int, only: str | None, judgement: str, detail: str) -> str:
    """The program that shows what the case of a seed does."""
    case = case_of(seed, only)
    return snippet(case, f"{judgement} by {case.op}, seed {seed}\n{detail}")


def poison() -> None:
    """Fill fresh memory with NaN, so that what is read before it is written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def main() -> None:
    """Judge the cases that the command line names."""
    faulthandler.enable()
    kind, first, count, *plant = sys.argv[1:]
    poison()
    only = kind.removeprefix("ops").strip() or None
    if plant:
        plants.plant(plant[0])
    say = sys.stdout.buffer
    for seed in range(int(first), int(first) + int(count)):
        say.write(b"begin %d\n" % seed)
        say.flush()
        op, judgement, detail, text = model_cases.describe(seed) if kind == "models" else describe_op(seed, only)
        say.write(json.dumps([seed, op, judgement, detail, text]).encode() + b"\n")
    say.flush()


if __name__ == "__main__":
    main()
