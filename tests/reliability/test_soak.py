"""A short soak: drift within its bound, and a bound that a lost state exceeds; the full run is ``make reliability``."""

from __future__ import annotations

import pytest
import soak


def test_drift_stays_within_its_bound() -> None:
    found = soak.soak(200, reload_every=40)
    assert found["reloads"] == 5
    assert 0 < found["largest_drift"] <= found["drift_bound"] < 1e-3


def test_a_momentum_lost_in_a_reload_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    reload = soak.Run.reload

    def forgetful(run: soak.Run) -> None:
        reload(run)
        for state in run.optimizer.state.values():
            state["momentum"].zero_()

    monkeypatch.setattr(soak.Run, "reload", forgetful)
    assert any(
        "the drift" in problem for problem in soak.problems({**soak.soak(200, reload_every=40), "memory_growth": 0})
    )


def test_calls_keep_no_memory() -> None:
    found = soak.calls(4000)
    assert soak.problems(found) == []
    assert soak.problems({**found, "memory_growth": 0.011}) == ["resident memory grew by 1.1%"]
