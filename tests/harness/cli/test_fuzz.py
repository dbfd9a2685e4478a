"""Every file that a command reads, damaged at random: a clean message or the right result, never a traceback or a wait.

``LNB_FUZZ_CASES`` sets the number of cases per test, ``LNB_FUZZ_SEED`` the first seed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import change_leaf, damage
from small_study import PROFILES, SUITE
from typer.testing import CliRunner, Result

from lnb_bench.cli.app import app
from lnb_bench.study.profiles import save_profile
from lnb_bench.training.checkpoint import load_checkpoint, save_checkpoint

CASES, SEED = int(os.environ.get("LNB_FUZZ_CASES", "25")), int(os.environ.get("LNB_FUZZ_SEED", "0"))
LONGEST = 60  # seconds of one command, which takes less than one


class Waits(BaseException):
    """A command has not ended in time."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Waits

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def invoke(case: str, *arguments: object) -> Result:
    """Run a command, which must end in time and without a traceback, and say what is wrong if it fails."""
    with time_limit():
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{case}: {result.exception!r}") from result.exception
    assert result.exit_code in (0, 1, 2), f"{case}: {result.output}"
    assert "Traceback" not in result.output, case
    assert result.exit_code == 0 or "error" in result.output.lower(), f"{case}: {result.output}"
    return result


def steps_made(run: Path) -> list[tuple[int, str]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["split"]) for record in map(json.loads, lines)]


@pytest.fixture(scope="module", params=["adamw", "lnb"])
def halfway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that ended after 8, beside ``whole``, the same run at its end."""
    folder = tmp_path_factory.mktemp("halfway")
    out = folder / "run"
    options = ("train", "--task", "digits", "--optimizer", request.param, "--width", 4, "--log-every", 4)
    assert invoke("setup", *options, "--steps", 8, "--out", out).exit_code == 0
    (out / "model.pt").unlink()
    (out / "run.json").write_text((out / "run.json").read_text().replace('"steps": 8', '"steps": 12'))
    shutil.copytree(out, folder / "whole")
    assert invoke("setup", "train", "--resume", "--out", folder / "whole").exit_code == 0
    return out


def check_resume(case: str, run: Path, whole: Path) -> None:
    """Resume; what succeeds must be the run that would have been, unless the length is another."""
    result = invoke(case, "train", "--resume", "--out", run)
    if result.exit_code:
        assert str(run) in result.output.replace("\n", ""), f"{case}: {result.output}"
        return
    if json.loads((run / "run.json").read_text()).get("steps") != 12:
        return
    models = [torch.load(folder / "model.pt", weights_only=True) for folder in (run, whole)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1]), case
    assert set(steps_made(whole)) - {(8, "test")} <= set(steps_made(run)), case


def test_resuming_damaged_runs(halfway: Path, tmp_path: Path) -> None:
    for seed in range(SEED, SEED + CASES):
        draw = random.Random(seed)
        run = Path(shutil.copytree(halfway, tmp_path / str(seed)))
        name = draw.choice(["run.json", "metrics.jsonl", "metrics.jsonl", "checkpoint.lnb"])
        case = f"seed {seed}, {name}: {damage(run / name, draw)}"
        check_resume(case, run, halfway.parent / "whole")
        shutil.rmtree(run)


def test_resuming_from_checkpoints_of_other_content(halfway: Path, tmp_path: Path) -> None:
    for seed in range(SEED, SEED + CASES):
        draw = random.Random(seed)
        run = Path(shutil.copytree(halfway, tmp_path / str(seed)))
        state = load_checkpoint(run / "checkpoint.lnb")
        case = f"seed {seed}: {change_leaf(state, draw)}"
        save_checkpoint(run / "checkpoint.lnb", state)
        result = invoke(case, "train", "--resume", "--out", run)
        assert result.exit_code == 0 or "checkpoint.lnb: " in result.output.replace("\n", ""), (
            f"{case}: {result.output}"
        )
        shutil.rmtree(run)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two runs in ``runs``, its suite, and profiles."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "small.toml").write_text(SUITE)
    assert invoke("setup", "run", folder / "small.toml", "--quick", "--out", folder / "runs").exit_code == 0
    for kind, results in PROFILES.items():
        save_profile(folder / f"{kind}.json", kind, "A made-up model", results)
    return folder


def damaged_study(study: Path, folder: Path, draw: random.Random, names: list[str]) -> tuple[str, Path]:
    copy = Path(shutil.copytree(study, folder))
    if draw.random() < 0.5:  # else the files of the runs hide their rows
        shutil.rmtree(copy / "runs" / "cells")
    files = [file for name in names for file in sorted(copy.glob(name))]
    file = draw.choice(files)
    return f"{file.name}: {damage(file, draw)}", copy


def test_benching_on_damaged_studies(study: Path, tmp_path: Path) -> None:
    for seed in range(SEED, SEED + CASES):
        draw = random.Random(seed)
        names = ["small.toml", "runs/results.parquet", "runs/cells/*.json", "runs/suite.toml"]
        case, copy = damaged_study(study, tmp_path / str(seed), draw, names)
        options = ("--quick", "--out", copy / "runs", "--task", "digits")
        invoke(f"seed {seed}, {case}", "run", copy / "small.toml", *options)
        shutil.rmtree(copy)


def test_reporting_damaged_studies(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if CASES < 100:  # pictures take most of the time
        monkeypatch.setattr("lnb_bench.study.document.PICTURES", {})
        monkeypatch.setattr("lnb_bench.study.profile_pictures.profile", lambda profile, theme: b"")
    for seed in range(SEED, SEED + CASES):
        draw = random.Random(seed)
        names = ["small.toml", "runs/results.parquet", "runs/cells/*.json", *(f"{kind}.json" for kind in PROFILES)]
        case, copy = damaged_study(study, tmp_path / str(seed), draw, names)
        profiles = [part for kind in PROFILES for part in ("--profile", copy / f"{kind}.json")]
        options: list[Any] = ["--quick", "--out", copy / "page", "--markdown", copy / "page.md", *profiles]
        invoke(f"seed {seed}, {case}", "report", copy / "small.toml", copy / "runs", *options)
        shutil.rmtree(copy)


NUMBERS = (
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e308",
    "x",
    "",
    "99999999999999",
    str(2**63),
    "1" + "0" * 30,
    "-0.0",
)
SETTINGS = ("betas=3", "betas=(0.9,)", "eps=None", "fused='x'", "params=3", "lr=3", "capturable=True", "differentiable=True",
            "model=1", "x=" + "[" * 5000, "betas={1:2}", "weight_decay='a'", "preset=3", "ridge=[]", "solver=3")  # fmt: skip


@pytest.mark.parametrize(
    "option",
    ["--lr", "--weight-decay", "--seed", "--batch-size", "--clip-norm", "--width", "--depth", "--rescale", "--log-every",
     "--evaluate-every", "--checkpoint-every", "--epochs", "--steps", "--heads", "--condition", "--context"],
)  # fmt: skip
def test_wrong_numbers(option: str) -> None:
    for value in NUMBERS:
        endless = option in ("--steps", "--epochs") and value in ("99999999999999", "1e308")
        length = () if option in ("--steps", "--epochs") else ("--steps", "2")
        if not endless:
            invoke(
                f"{option} {value}", "train", "--task", "digits", "--optimizer", "adamw", *length, f"{option}={value}"
            )


@pytest.mark.parametrize("optimizer", ["adamw", "lnb", "muon", "sgd"])
def test_wrong_settings(optimizer: str) -> None:
    for setting in SETTINGS:
        options = ("--task", "digits", "--width", 4, "--steps", 2, "--optimizer", optimizer)
        invoke(f"{optimizer} {setting[:40]}", "train", *options, "--set", setting)


@pytest.mark.parametrize("out", ["file", "fifo", "loop", "n" * 300, "file/below", "/proc/none"])
def test_folders_that_cannot_be(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for more in ((), ("--resume",)):
        result = invoke(out, "train", "--task", "digits", "--steps", 2, "--out", tmp_path / out, *more)
        assert result.exit_code == 1
    (tmp_path / "small.toml").write_text(SUITE)
    for command in (("run", tmp_path / "small.toml"), ("report", tmp_path / "small.toml", tmp_path)):
        assert invoke(out, *command, "--quick", "--out", tmp_path / out).exit_code == 1
