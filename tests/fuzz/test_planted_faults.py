"""The harness finds faults that are planted in the package, and says how to see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import plants
from fuzz.__main__ import main
from fuzz.case import Case
from fuzz.judge import CRASH, HALF, OK, REFUSED, UNNAMED, WRONG
from fuzz.model_cases import describe
from fuzz.pool import Outcome, outcomes
from fuzz.registry import case_of
from fuzz.summary import Summary
from fuzz.worker import describe_op

import lnb
import lnb_kernels as lk

ENDS = {"kill": "ended the process with 11", "abort": "ended the process with -6", "hang": "did not end within 5 s"}
LETHAL = tuple(ENDS)
FOUND_AS = {
    "permute": WRONG,
    "lose sign": WRONG,
    "drop last": WRONG,
    "write first": HALF,
    "forget name": UNNAMED,
    "write beside": WRONG,
}


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The op with the fault; undone afterwards."""
    op, _ = plants.PLANTS[request.param]
    *within, last = op.split(".")
    owner: Any = lk.multi_tensor if within else lk
    monkeypatch.setattr(owner, last, getattr(owner, last))
    plants.plant(request.param)
    return op


def test_every_plant_is_tried() -> None:
    assert set(plants.PLANTS) == {*LETHAL, *FOUND_AS}


@pytest.mark.parametrize(("planted", "judgement"), FOUND_AS.items(), indirect=["planted"], ids=list(FOUND_AS))
def test_it_finds(planted: str, judgement: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = [describe_op(seed, planted) for seed in range(60)]
    faults = [(detail, text) for _, kind, detail, text in found if kind == judgement]
    assert len(faults) >= 3
    detail, text = faults[0]
    assert detail
    exec(compile(text, "<snippet>", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("plant", LETHAL)
def test_it_survives(plant: str) -> None:
    op, _ = plants.PLANTS[plant]
    lethal = next(seed for seed in range(100) if is_lethal(plant, case_of(seed, op)))
    seconds = 5.0 if plant == "hang" else 120.0
    judged = list(outcomes(f"ops {op}", lethal, 1, plant, seconds))
    assert [(outcome.seed, outcome.judgement) for outcome in judged] == [(lethal, CRASH)]
    assert f"lk.{op}(" in judged[0].snippet
    assert ENDS[plant] in judged[0].detail


def is_lethal(plant: str, case: Case) -> bool:
    return case.bad is None and not case.fake and (plant != "kill" or case.arguments["steps"] == "5")


def test_it_goes_on_behind_a_case_that_kills() -> None:
    op, _ = plants.PLANTS["kill"]
    lethal = next(seed for seed in range(2, 100) if is_lethal("kill", case_of(seed, op)))
    judged = list(outcomes(f"ops {op}", lethal, 2, "kill"))
    assert [outcome.seed for outcome in judged] == [lethal, lethal + 1]


def test_a_model_whose_output_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lk.linear
    monkeypatch.setattr(lk, "linear", lambda *args, **kwargs: original(*args, **kwargs) * (1 + 1e-6))
    found = [describe(seed) for seed in range(8)]
    assert any("differ" in detail and judgement == WRONG for _, judgement, detail, _ in found)


def test_a_state_that_is_not_restored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lnb.LNB.load_state_dict

    def forgetful(self: lnb.LNB, state_dict: dict[str, Any]) -> None:
        original(self, state_dict)
        for state in self.state.values():
            state["momentum"].mul_(1.5)

    monkeypatch.setattr(lnb.LNB, "load_state_dict", forgetful)
    found = [describe(seed) for seed in range(8)]
    texts = [text for _, judgement, detail, text in found if "of the resumed model differ" in detail]
    assert texts
    exec(compile(texts[0], "<snippet>", "exec"), {"__name__": "snippet"})


def test_a_run_writes_its_summary_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    given = ["--models", "0", "--seed", "5", "--out", str(out)]
    main([*given, "--calls", "20"])
    main([*given, "--calls", "40", "--resume"])
    content = json.loads(out.read_text())
    assert content["done"] == {"ops": 40, "models": 0}
    assert content["seed"] == 5
    assert content["versions"]["torch"] == torch.__version__
    assert sum(sum(counts.values()) for counts in content["counts"].values()) == 40
    assert content["totals"][OK] + content["totals"][REFUSED] > 20
    assert Summary.read(out).done == content["done"]


def test_a_fault_of_a_run_is_kept_with_its_program(tmp_path: Path) -> None:
    summary = Summary(0)
    for seed in range(5):
        new = summary.add("ops", Outcome(seed, "dot", WRONG, f"result: {seed} of 7 entries wrong", f"program {seed}"))
        assert new == (seed == 0)
    summary.write(tmp_path / "fuzz.json")
    (found,) = json.loads((tmp_path / "fuzz.json").read_text())["faults"].values()
    assert found["count"] == 5
    assert [example["snippet"] for example in found["examples"]] == ["program 0", "program 1", "program 2"]
