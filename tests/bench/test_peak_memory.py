"""The memory benchmark: it sees a known temporary, and its figures of a small model add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peak_memory
import pytest
import torch
from torch import nn


class Hungry(torch.optim.SGD):
    """Needs 8 MB more than SGD while it steps."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        temporary = torch.zeros(2_000_000)
        temporary += 1
        super().step()


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peak_memory.OPTIMIZERS, "sgd", lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    monkeypatch.setitem(peak_memory.OPTIMIZERS, "hungry", lambda m: Hungry(m.parameters(), lr=0.1))


@pytest.mark.usefixtures("hungry")
def test_a_temporary_of_the_step_is_seen_and_named() -> None:
    plain, hungry = (peak_memory.measure("mlp", name, 0.02) for name in ("sgd", "hungry"))
    added = hungry.phase_peaks["step"] - plain.phase_peaks["step"]
    assert 8_000_000 <= added < 8_050_000
    assert hungry.phase.startswith("step")
    assert hungry.at_peak["aten::zeros"] == 8_000_000


def test_figures_do_not_depend_on_the_run() -> None:
    one, two = (peak_memory.measure("mlp", "fast", 0.1) for _ in range(2))
    assert (one.peak, one.phase_peaks, one.state) == (two.peak, two.phase_peaks, two.state)
    parameters = sum(p.numel() for p in nn.Sequential(nn.Linear(784, 80), nn.Linear(80, 10)).parameters())
    assert one.peak > 4 * 2 * parameters + one.state  # parameters, gradients and state are all live in the step


def test_the_plan_is_the_state() -> None:
    usage = peak_memory.measure("mlp", "fast", 0.1)
    assert usage.state == pytest.approx(usage.planned, rel=0.01)


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    command = [sys.executable, peak_memory.__file__, "--model", "mlp", "--scale", "0.05", "--json", str(out)]
    command += ["--optimizer", "fast", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "over swapped state" in done.stdout
    rows = json.loads(out.read_text())["results"]["mlp"]
    assert set(rows) == {"AdamW fused", "fast"}
    assert rows["AdamW fused"]["over_planned"] == 1
