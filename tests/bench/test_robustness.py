"""The robustness suite: its verdicts, and the cases that exploded under steps of a fixed length."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import robustness
import torch
from robustness_cases import CASES


def test_verdicts() -> None:
    adamw = [(1.0, 0.1), (1.0, 0.1)]
    for last, verdict in (
        (0.11, ""),
        (0.13, "worse"),
        (1.1, "above worse"),
        (math.inf, "above worse"),
        (math.nan, "above worse"),
    ):
        assert robustness.judge({"adamw": adamw, "lnb": [(1.0, 0.1), (1.0, last)]}, "lnb") == verdict
    assert robustness.judge({"adamw": [(1.0, 1e-6)], "lnb": [(1.0, 9e-4)]}, "lnb") == ""


@pytest.mark.parametrize("optimizer", ["lnb", "lnb x 3"])
@pytest.mark.parametrize("name", ["plain 12 x 64 ReLU", "residual 4, no norm", "batch 1"])
def test_no_case_ends_above_its_start(name: str, optimizer: str) -> None:
    case = dataclasses.replace(CASES[name], steps=150)
    losses = [robustness.run(case, optimizer, seed) for seed in (0, 1)]
    start = 0.83  # of a network of outputs near zero: the mean square of the targets
    assert max(last for _, last in losses) < 1.2 * start


def test_every_case_builds_and_draws() -> None:
    for name, case in CASES.items():
        if "4096" in name:
            continue
        torch.manual_seed(0)
        x, y = next(case.batches(0))
        assert x.shape == (case.batch, 32), name
        assert y.shape == (case.batch, 1), name
        assert bool(y.isfinite().all()), name


def test_the_table_is_made_of_kept_results() -> None:
    results = {"adamw": [(1.0, 0.1)], "muon": [(1.0, 0.2)], "lnb": [(1.0, 0.13)], "lnb x 3": [(1.0, math.inf)]}
    wide = {name: [(1.0, 0.001)] for name in ("adamw", "lnb", "lnb x 3")}
    page = robustness.page({"cases": {"batch 1": results, "width 4096": wide}, "torch": "2", "date": "2000-01-01"})
    assert "| width 4096 | 1 | 1 | 0.001 |  | 0.001 | 0.001 |  |" in page
    assert "| batch 1 | 1 | 1 | 0.1 | 0.2 | 0.13 | inf | lnb: worse, lnb x 3: above worse |" in page
    counted = "lnb: 0 above the start, 1 worse than 1.2 times AdamW; lnb x 3: 1 above the start, 1 worse"
    assert f"Of 2 cases run (the suite has {len(CASES)}): {counted}" in page


def test_the_start_is_the_loss_of_many_rows() -> None:
    """A lone row's loss differs tenfold between seeds."""
    starts = []
    for seed in range(3):
        torch.manual_seed(seed)
        starts.append(robustness.start_of(CASES["batch 1"], CASES["batch 1"].build(), seed))
    assert max(starts) < 1.3 * min(starts)


def test_the_committed_table_is_made_of_the_kept_results() -> None:
    root = Path(__file__).resolve().parents[2]
    kept = json.loads((root / "bench" / "results" / "robustness.json").read_text())
    assert (root / "docs" / "robustness.md").read_text() == robustness.page(kept)
