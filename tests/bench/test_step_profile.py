"""The step profile: parts that add up, and memory that shows what keeping inputs costs."""

from __future__ import annotations

import gc
import itertools
import json
import sys
from pathlib import Path

import pytest
import step_profile
import torch
import torch.nn.functional as F
from torch import nn

from lnb import step
from lnb_bench.study import CLOCKS, load_profile


def small() -> tuple[nn.Module, step_profile.Batch]:
    """64-8-10, batch 100."""
    torch.manual_seed(0)
    target = torch.randint(0, 10, (100,))
    batch = torch.rand(100, 64), lambda y: F.cross_entropy(y, target)
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)), batch


def test_spans_are_split_by_hand() -> None:
    base = {"forward": 10.0, "backward": 20.0, "solve": 0.0, "update": 1.0}
    mine = {"forward": 12.0, "backward": 25.0, "solve": 7.0, "update": 2.0}
    assert step_profile.split(mine, base) == {
        "forward": 10.0, "backward": 20.0, "statistics": 7.0, "solve": 7.0, "update": 2.0,
    }  # fmt: skip
    assert step_profile.split(base, mine)["statistics"] == 0


def test_every_moment_of_a_step_is_in_one_span() -> None:
    ticks = itertools.count()
    model, batch = small()
    plain = step.solve
    worker = step_profile.Worker(model, step_profile.OPTIMIZERS["paper"], lambda: float(next(ticks)))
    spans = worker.step(batch)
    solutions = spans["solve"]  # one tick lies within each
    assert solutions >= 1
    assert spans == {"forward": 1, "backward": 1, "solve": solutions, "update": 1 + solutions}
    assert sum(spans.values()) == next(ticks) - 1
    assert step.solve is plain


def test_parts_of_a_real_step() -> None:
    rows = step_profile.parts(*small(), 1, CLOCKS["cpu"])
    assert list(rows) == list(step_profile.OPTIMIZERS)
    assert all(rows["paper"][name] > 0 for name in ("forward", "backward", "solve", "update"))
    assert rows["AdamW fused"]["statistics"] == rows["AdamW fused"]["solve"] == 0


def test_no_time_for_an_optimizer_that_does_not_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def uphill(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)

    chosen = {step_profile.BASE: step_profile.OPTIMIZERS[step_profile.BASE], "uphill": uphill}
    monkeypatch.setattr(step_profile, "OPTIMIZERS", chosen)
    assert list(step_profile.parts(*small(), 1, CLOCKS["cpu"])) == [step_profile.BASE]
    assert "uphill" in capsys.readouterr().out


def test_kept_inputs_cost_memory_that_grows_with_the_batch() -> None:
    gc.collect()  # what earlier tests left would be freed, and counted, at any time
    gc.disable()
    try:
        rows = step_profile.show_memory([64, 2048], width=32, depth=3)
    finally:
        gc.enable()
    peaks = {(row["optimizer"], row["checkpointed"]): row["peaks"] for row in rows}
    growth = {key: sizes[2048] - sizes[64] for key, sizes in peaks.items()}
    activation = 4 * 32 * (2048 - 64)
    assert growth["paper, probe", False] < growth["AdamW fused", False] + activation
    assert growth["AdamW fused", True] < growth["AdamW fused", False] - activation
    assert growth["paper, kept inputs", True] > growth["paper, probe", True] + activation


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step_profile.step_overhead.MODELS, "mlp", small)
    threads = torch.get_num_threads()
    common = ["step_profile.py", "--threads", "1", "--json"]
    try:
        for name, arguments in {
            "parts": ["--model", "mlp", "--cycles", "1", "--clock", "cpu"],
            "memory": ["--memory", "--batches", "64", "128", "--width", "16", "--depth", "1"],
        }.items():
            monkeypatch.setattr(sys, "argv", [*common, str(tmp_path / name), *arguments])
            step_profile.main()
            profile = load_profile(tmp_path / name)
            assert profile.kind == name
            assert "1 thread; lnb " in profile.machine
        assert list(json.loads((tmp_path / "memory").read_text())["results"][0]["peaks"]) == ["64", "128"]
        monkeypatch.setattr(sys, "argv", ["step_profile.py", "--clock", "cpu", "--threads", "2"])
        with pytest.raises(SystemExit):
            step_profile.main()
    finally:
        torch.set_num_threads(threads)
