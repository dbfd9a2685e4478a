"""A slice of the random models, the same in every run; ``make fuzz`` makes more."""

from __future__ import annotations

from fuzz.judge import FAULTS, OK
from fuzz.pool import outcomes
from fuzz.test_fuzz_ops import report

MODELS = 60


def test_random_models_train_as_unattached_ones() -> None:
    judged = list(outcomes("models", 1_000_000, MODELS))
    faults = [outcome for outcome in judged if outcome.judgement in FAULTS]
    assert not faults, f"{len(faults)} faults\n{report(faults)}"
    assert sum(outcome.judgement == OK for outcome in judged) > MODELS // 2
