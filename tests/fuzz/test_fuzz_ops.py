"""A slice of the random calls, the same in every run; ``make fuzz`` makes more."""

from __future__ import annotations

import pytest
from fuzz.case import snippet
from fuzz.judge import FAULTS
from fuzz.pool import Outcome, outcomes
from fuzz.registry import GENERATORS, OF_THE_OPTIMIZER, case_of, public_functions

CALLS = 3_000


def report(found: list[Outcome]) -> str:
    return "\n".join(f"{o.op}, seed {o.seed}: {o.judgement}\n{o.detail}\n{o.snippet}" for o in found[:3])


def test_every_public_function_has_a_generator() -> None:
    assert set(GENERATORS) == public_functions() | OF_THE_OPTIMIZER


def test_random_calls_are_right_or_refused() -> None:
    judged = list(outcomes("ops", 1_000_000, CALLS))
    faults = [outcome for outcome in judged if outcome.judgement in FAULTS]
    assert len(judged) == CALLS
    assert not faults, f"{len(faults)} faults\n{report(faults)}"


@pytest.mark.parametrize("op", sorted(GENERATORS))
def test_a_snippet_runs_by_itself(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    cases = (case_of(seed, op) for seed in range(100))
    case = next(case for case in cases if case.bad is None and "[]" not in case.arguments.values())
    exec(compile(snippet(case, "as a report prints it"), "<snippet>", "exec"), {"__name__": "snippet"})
    assert "got" in capsys.readouterr().out
