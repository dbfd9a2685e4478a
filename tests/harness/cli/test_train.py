"""``lnb-bench train`` through its command line: what it keeps, what it refuses, and that a kill costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_commands import invoke
from killing import kill_once

from lnb_bench.training.checkpoint import load_checkpoint


def series(out: Path) -> list[dict[str, Any]]:
    """The metric series without the times."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def same_model(one: Path, other: Path) -> bool:
    models = [torch.load(out / "model.pt", weights_only=True) for out in (one, other)]
    return models[0].keys() == models[1].keys() and all(torch.equal(models[0][k], models[1][k]) for k in models[0])


def test_version_and_help() -> None:
    assert invoke("--version").startswith("lnb-bench ")
    assert "--checkpoint-every" in invoke("train", "--help")


def test_a_run_in_memory_and_one_that_is_kept(tmp_path: Path) -> None:
    options = ("train", "--task", "digits", "--optimizer", "adamw", "--steps", 22)
    assert "nothing was kept" in invoke(*options)
    output = invoke(*options, "--out", tmp_path / "run")
    assert "accuracy" in output
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {
        "task": "digits",
        "optimizer": "adamw",
        "steps": 22,
    }
    assert [(r["split"], r["step"]) for r in series(tmp_path / "run")] == [
        ("test", 0), ("train", 10), ("test", 11), ("train", 20), ("train", 22), ("test", 22),
    ]  # fmt: skip
    assert load_checkpoint(tmp_path / "run" / "checkpoint.lnb")["step"] == 22


def test_epochs_and_settings(tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke("train", "--task", "digits", "--epochs", 0.5, "--set", "ridge=0.5", "--set", "solver=arrow", "--batch-size", 100,
           "--set", "moment_dtype=bfloat16", "--optimizer", "lnb-paper", "--invert", "--width", 8, "--out", out)  # fmt: skip
    state = load_checkpoint(out / "checkpoint.lnb")
    assert state["step"] == 7
    assert state["optimizer"]["parts"][0]["param_groups"][0]["ridge"] == 0.5
    assert state["model"]["layers.1.weight"].shape == (8, 64)


def test_another_run_is_refused_and_resume_is_checked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke("train", "--task", "digits", "--steps", 5, "--optimizer", "sgd", "--out", out)
    before = series(out)
    assert "holds another run" in invoke("train", "--task", "digits", "--out", out, code=1)
    assert "lr=0.5 contradicts the run to resume, which has its default" in invoke(
        "train", "--resume", "--lr", 0.5, "--out", out, code=1
    )
    assert "optimizer='adamw' contradicts the run to resume, which has 'sgd'" in invoke(
        "train", "--resume", "--optimizer", "adamw", "--out", out, code=1
    )
    assert "the run is complete: 5 steps" in invoke("train", "--resume", "--out", out)
    assert series(out) == before


def test_a_run_can_be_lengthened(tmp_path: Path) -> None:
    short, whole = tmp_path / "short", tmp_path / "whole"
    options = ("train", "--task", "digits", "--optimizer", "lnb-paper", "--evaluate-every", 10)
    invoke(*options, "--steps", 20, "--out", short)
    assert "at step 20" in invoke("train", "--resume", "--steps", 40, "--out", short)
    invoke(*options, "--steps", 40, "--out", whole)
    assert series(short) == series(whole)
    assert same_model(short, whole)
    assert "complete: 40 steps" in invoke("train", "--resume", "--out", short)


def test_a_cosine_run_cannot_be_lengthened(tmp_path: Path) -> None:
    invoke("train", "--task", "digits", "--steps", 3, "--schedule", "cosine", "--out", tmp_path)
    output = invoke("train", "--resume", "--steps", 9, "--out", tmp_path, code=1)
    assert "steps=9: the length of a run with the schedule cosine cannot change" in output


def test_resume_starts_a_run_that_was_never_started(tmp_path: Path) -> None:
    invoke("train", "--task", "digits", "--steps", 3, "--resume", "--out", tmp_path / "new")
    assert series(tmp_path / "new")[-1]["step"] == 3


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    for width in (8, 9):
        invoke("train", "--task", "digits", "--steps", 3, "--width", width, "--out", tmp_path / str(width))
    checkpoint = tmp_path / "8" / "checkpoint.lnb"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes((tmp_path / "9" / "checkpoint.lnb").read_bytes())
    output = invoke("train", "--resume", "--out", tmp_path / "8", code=1)
    assert "parameter 'layers.1.weight' is (9, 64) in the checkpoint and (8, 64) in this run's model" in output
    checkpoint.write_bytes(whole[:-100])
    assert "checkpoint.lnb: damaged" in invoke("train", "--resume", "--out", tmp_path / "8", code=1)
    assert series(tmp_path / "8") == series(tmp_path / "8")[:4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--task is missing"),
        (("--task", "imagenet"), "task='imagenet' must be one of digits, mnist"),
        (("--task", "digits", "--optimizer", "adam"), "optimizer='adam' must be one of lnb"),
        (("--task", "digits", "--lr", "-1"), "lr=-1.0 must be"),
        (("--task", "digits", "--steps", "0"), "steps=0 must be at least 1"),
        (("--task", "digits", "--steps", "1", "--epochs", "1"), "exclude each other"),
        (("--task", "digits", "--epochs", "nan"), "epochs=nan must be above 0"),
        (("--task", "digits", "--set", "ridge"), "--set 'ridge' must be NAME=VALUE"),
        (("--task", "digits", "--set", "rigde=1"), "rigde"),
        (("--task", "digits", "--model", "gpt"), "model='gpt' does not fit task digits"),
        (("--task", "digits", "--checkpoint-every", "0"), "checkpoint_every=0"),
        (("--task", "digits", "--device", "gpu"), "device='gpu' cannot be used here"),
        (("--task", "digits", "--set", "moment_dtype=bf16"), "moment_dtype='bf16' must be None"),
        (("--resume",), "--resume needs --out"),
        (("--resume", "--out", "no-run"), "no-run holds no run to continue"),
    ],
)
def test_wrong_use(options: tuple[str, ...], message: str) -> None:
    assert message in invoke("train", *options, code=2)


def test_missing_data_and_divergence(tmp_path: Path) -> None:
    output = invoke("train", "--task", "camvid", "--data", tmp_path, code=1)
    assert "camvid_train.npz: no such file. Put" in output
    arguments = ("train", "--task", "matrix-factorization", "--optimizer", "sgd", "--lr", 1e6, "--steps", 99)
    assert "the run has diverged; lower the learning rate" in invoke(*arguments, code=1)


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """With LNB; that a run with any optimizer resumes bit for bit is a test of the loop."""
    options = ["train", "--task", "digits", "--optimizer", "lnb", "--steps", "120", "--evaluate-every", "7",
               "--schedule", "cosine"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command(out: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "lnb_bench", *more, "--out", str(out)]

    subprocess.run(command(whole, *options), env=environment, check=True, capture_output=True, timeout=120)
    process = subprocess.Popen(
        command(killed, *options, "--checkpoint-every", "10"), env=environment, stdout=subprocess.DEVNULL
    )
    kill_once(lambda: (killed / "metrics.jsonl").exists() and len(series_so_far(killed)) >= 10, process, 120)
    reached = load_checkpoint(killed / "checkpoint.lnb")["step"]
    assert 0 < reached < 120
    assert not (killed / "model.pt").exists()

    subprocess.run(command(killed, "train", "--resume"), env=environment, check=True, capture_output=True, timeout=120)
    assert series(killed) == series(whole)
    assert same_model(killed, whole)


def series_so_far(out: Path) -> list[str]:
    """The whole lines of a series that is being written."""
    return (out / "metrics.jsonl").read_text().split("\n")[:-1]
