"""The harness finds faults that are planted in the package, and says how to see them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import plants
from fuzz.judge import CRASH, HALF, OK, REFUSED, UNNAMED, WRONG
from fuzz.model_cases import describe
from fuzz.pool import TESTS, outcomes
from fuzz.summary import Summary
from fuzz.worker import describe_op

import lnb
import lnb_kernels as lk

LETHAL = ("kill", "abort", "hang")
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


@pytest.mark.parametrize("plant", ["kill", "hang"])
def test_it_survives(plant: str) -> None:
    op, _ = plants.PLANTS[plant]
    judged = list(
        outcomes(f"ops {op}", 0, 4 if plant == "hang" else 30, plant, seconds=8.0 if plant == "hang" else 60.0)
    )
    crashes = [outcome for outcome in judged if outcome.judgement == CRASH]
    assert [outcome.seed for outcome in judged] == list(range(len(judged)))
    assert crashes
    assert f"lk.{op}(" in crashes[0].snippet
    assert ("did not end" if plant == "hang" else "ended the process with 11") in crashes[0].detail


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
    command = [sys.executable, "-m", "fuzz", "--models", "1", "--seed", "5", "--out", str(out)]
    for calls, more in (("20", []), ("40", ["--resume"])):
        subprocess.run([*command, "--calls", calls, *more], cwd=TESTS, capture_output=True, check=False, timeout=300)
    content = json.loads(out.read_text())
    assert content["done"] == {"ops": 40, "models": 1}
    assert content["seed"] == 5
    assert content["versions"]["torch"] == torch.__version__
    assert sum(sum(counts.values()) for counts in content["counts"].values()) == 41
    assert set(Summary.read(out).counts) <= {
        f"model of {kind}" for kind in ("vectors", "images", "sequences", "tokens")
    } | set(content["counts"])
    assert content["totals"][OK] + content["totals"][REFUSED] > 20
