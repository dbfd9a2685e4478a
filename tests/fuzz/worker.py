"""A process that judges cases one after the other and says so on its standard output; it may die of one.

``python -m fuzz.worker ops FIRST COUNT [PLANT]``: before a case it writes ``begin SEED``, after it a line of JSON.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback

from fuzz import model_cases, plants
from fuzz.case import snippet
from fuzz.judge import FAULTS, HARNESS, judge
from fuzz.registry import case_of


def describe_op(seed: int) -> tuple[str, str, str, str]:
    """``(op, judgement, detail, snippet)`` of the case of a seed."""
    case = case_of(seed)
    try:
        verdict = judge(case)
    except Exception:
        return case.op, HARNESS, traceback.format_exc(limit=-6), ""
    if verdict.judgement not in FAULTS:
        return case.op, verdict.judgement, "", ""
    return case.op, verdict.judgement, verdict.detail, snippet_of_op(seed, verdict.judgement, verdict.detail)


def snippet_of_op(seed: int, judgement: str, detail: str) -> str:
    """The program that shows what the case of a seed does."""
    case = case_of(seed)
    return snippet(case, f"{judgement} by {case.op}, seed {seed}\n{detail}")


DESCRIBE = {"ops": describe_op, "models": model_cases.describe}


def main() -> None:
    """Judge the cases that the command line names."""
    faulthandler.enable()
    kind, first, count, *plant = sys.argv[1:]
    if plant:
        plants.plant(plant[0])
    say = sys.stdout.buffer
    for seed in range(int(first), int(first) + int(count)):
        say.write(b"begin %d\n" % seed)
        say.flush()
        op, judgement, detail, text = DESCRIBE[kind](seed)
        say.write(json.dumps([seed, op, judgement, detail, text]).encode() + b"\n")
    say.flush()


if __name__ == "__main__":
    main()
