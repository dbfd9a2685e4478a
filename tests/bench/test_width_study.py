"""The width study: its summary by hand, and a run on the small digits."""

from __future__ import annotations

import math

import pytest
import width_study


def test_summary() -> None:
    summary = width_study.summarise({0.1: 0.5, 0.2: 0.49, 0.4: 0.514, 0.8: 0.6, 1.6: math.inf})
    assert summary == {"best_lr": 0.2, "loss": 0.49, "near": [0.1, 0.2, 0.4], "inside": True}
    assert not width_study.summarise({0.1: 0.5, 0.2: 0.6})["inside"]
    assert width_study.summarise({0.1: math.inf})["best_lr"] is None


def test_rows_of_a_small_study(capsys: pytest.CaptureFixture[str]) -> None:
    rows = width_study.study(((16, 1), (16, 2)), (1e-9, 0.1), 12, 128, "digits", None)
    assert [(row["region"], row["depth"]) for row in rows] == [
        ("two_sided", 1), ("spectral", 1), ("two_sided", 2), ("spectral", 2),
    ]  # fmt: skip
    assert all(row["best_lr"] == 0.1 for row in rows)
    assert all(row["loss"] < 2.2 for row in rows)  # chance is log 10
    assert "0.1*" in capsys.readouterr().out
