"""``lnb-bench train --resume`` on run folders that somebody changed: an error that names what is wrong, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_commands import invoke
from killing import kill_once

from lnb_bench.training.checkpoint import load_checkpoint, save_checkpoint
from lnb_bench.training.lock import locked


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps, with the records (test 0), (train 4), (train 8), (test 11), (train 12), (test 12)."""
    out = tmp_path_factory.mktemp("finished") / "run"
    invoke(
        "train", "--task", "digits", "--optimizer", "adamw", "--width", 4, "--steps", 12, "--log-every", 4, "--out", out
    )
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume_fails(run: Path, *options: object) -> str:
    """The message of a resume that fails and changes no file."""
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and not file.name.startswith(".lnb")}
    output = invoke("train", "--resume", "--out", run, *options, code=1)
    assert output.startswith("error: "), output
    assert before == {
        file: file.read_bytes() for file in run.rglob("*") if file.is_file() and not file.name.startswith(".lnb")
    }
    return output


def change_line(number: int, **changes: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **changes})
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    return change


def replace_line(number: int, text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        lines[number - 1] = text
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_line(3, step=None), "line 3 is damaged (step=None must be a whole number of at least 0)"),
        (change_line(6, step=None), "line 6 is damaged (step=None must be a whole number of at least 0)"),
        (change_line(3, step=True), "line 3 is damaged (step=True must"),
        (change_line(3, step=10**9), "line 3 is damaged (step 1000000000 is not in epoch"),
        (change_line(6, step=10**9), "line 6 is damaged (step 1000000000 is not in epoch"),
        (change_line(6, step=10**400), "line 6 is damaged (step=1000"),
        (change_line(3, step=2), "line 3 is damaged (its step 2 (train) is not after the line before)"),
        (change_line(2, epoch="1"), "line 2 is damaged (epoch='1' must be a finite number"),
        (change_line(2, seconds=float("nan")), "line 2 is damaged (seconds=nan must be a finite number"),
        (change_line(2, split="tset"), "line 2 is damaged (split='tset' must be one of train, test)"),
        (change_line(2, values=3), "line 2 is damaged (values=3 must be a table of figures)"),
        (change_line(2, values={"loss": "1", "lr": 1}), "line 2 is damaged (values['loss']='1' must be a number)"),
        (change_line(2, values={"los": 1.0, "lr": 1}), "line 2 is damaged (its figures are los, lr, must be loss, lr)"),
        (
            change_line(4, values={"loss": 1.0, "acuracy": 1}),
            "line 4 is damaged (its figures are acuracy, loss, must be",
        ),
        (change_line(1, more=1), "line 1 is damaged (it has the unknown field 'more')"),
        (replace_line(2, "[1]"), "line 2 is damaged (it holds list, not the fields of a record)"),
        (replace_line(2, '{"step": 4}'), "line 2 is damaged (it has no field 'epoch')"),
        (replace_line(2, "[" * 100_000), "line 2 is damaged (it is nested too deeply)"),
        (replace_line(2, "\x00" * 9), "line 2 is damaged"),
    ],
)
def test_a_damaged_series_is_named_by_line(run: Path, change: Callable[[Path], None], message: str) -> None:
    change(run)
    output = resume_fails(run)
    assert f"{run / 'metrics.jsonl'}: {message}" in output
    assert "restore the file from a copy, or start the run anew in another --out" in output


def test_a_series_with_a_gap_is_not_continued(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:2] + lines[3:]))
    assert "has no train record of step 8, but the checkpoint is of step 12" in resume_fails(run)
    metrics.unlink()
    assert "has no test record of step 0, but the checkpoint is of step 12" in resume_fails(run)


def test_a_line_that_is_not_utf8(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b"accuracy", b"accurac\xff", 1))
    assert "line 1 is damaged ('utf-8' codec can't decode" in resume_fails(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.lnb", "run.json"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "loop"])
def test_something_else_in_place_of_a_file(run: Path, name: str, kind: str) -> None:
    file = run / name
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to(name)
    output = resume_fails(run)
    assert f"{file}: cannot be read" in output
    assert ("Too many levels" if kind == "loop" else "it is not a regular file") in output


def test_a_finished_run_without_its_checkpoint(run: Path) -> None:
    (run / "checkpoint.lnb").unlink()
    assert "checkpoint.lnb: no such file, although the run has ended (model.pt is there)" in resume_fails(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds list, not the state of a run"),
        ({}, "the checkpoint has no entry 'identity'"),
        ({"step": None}, "step is None in the checkpoint, must be a whole number"),
        ({"step": 10**9}, "step is 1000000000 in the checkpoint and 12 in its schedule"),
        ({"step": -1}, "step is -1"),
        ({"identity": 3}, "identity is int in the checkpoint, must be a table"),
        ({"model": {}}, "parameter 'layers.1.weight' is absent in the checkpoint"),
        ({"model": 3}, "model is int"),
        (
            {"loss_sum": torch.zeros(3)},
            "loss_sum is torch.float32 [3] in the checkpoint and torch.float64 [] in this run",
        ),
        ({"random": {"cpu": torch.zeros(3), "cuda": []}}, "random state of cpu is torch.float32 [3]"),
        ({"optimizer": {"parts": 3, "schedulers": []}}, "it is the state of 3 optimizers, this run has 1"),
        ({"seconds": "1"}, "seconds is '1'"),
        ({"run": {"task": "digits", "optimizer": "adamw", "width": 5}}, "width is 5 in the checkpoint and 4 in"),
    ],
)
def test_a_checkpoint_of_valid_digest_and_other_content(run: Path, content: Any, message: str) -> None:
    file = run / "checkpoint.lnb"
    state = load_checkpoint(file)
    save_checkpoint(file, {**state, **content} if content else content)
    output = resume_fails(run)
    assert f"{file}: " in output
    assert message in output


def moments(name: str, value: Any) -> Callable[[Any], None]:
    def change(part: Any) -> None:
        part["state"][0][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moments("exp_avg", torch.zeros(2)), "'exp_avg' of parameter 0 is (2,) in the checkpoint, must be (4, 64)"),
        (moments("exp_avg", 3), "optimizer state 'exp_avg' of parameter 0 is 3"),
        (lambda part: part["state"].update({9: {}}), "it has optimizer state of parameter 9, of 4 parameters"),
        (lambda part: part["param_groups"][0].update(betas=3), "betas is 3 in the checkpoint and (0.9, 0.999) in this run"),
        (lambda part: part["param_groups"][0].update(lr="a"), "lr is 'a' in the checkpoint"),
        (lambda part: part.pop("state"), "optimizer has no entry 'state'"),
    ],
)  # fmt: skip
def test_an_optimizer_state_that_does_not_fit(run: Path, change: Callable[[Any], None], message: str) -> None:
    state = load_checkpoint(run / "checkpoint.lnb")
    change(state["optimizer"]["parts"][0])
    save_checkpoint(run / "checkpoint.lnb", state)
    assert message in resume_fails(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "4"}, "width='4' must be a whole number; correct the file"),
        ({"width": 5}, "parameter 'layers.1.weight' is (4, 64) in the checkpoint and (5, 64) in this run's model"),
        ({"invert": True}, "invert is None in the checkpoint and True in"),
        ({"task": "imagenet"}, "task='imagenet' must be one of"),
        ({"settings": 3}, "settings=3 must be a table"),
        ({"lr": True}, "lr=True must be a number"),
    ],
)
def test_a_description_that_was_changed(run: Path, change: dict[str, Any], message: str) -> None:
    file = run / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    output = resume_fails(run)
    assert str(file.parent) in output
    assert message in output


def test_two_processes_do_not_share_a_folder(run: Path) -> None:
    with locked(run):
        message = (
            f"{run}: another process (pid {os.getpid()}) works in this folder; wait until it ends, or choose another"
        )
        assert message in resume_fails(run)
    with locked(run.parent / "new"):
        assert "works in this folder" in invoke("train", "--task", "digits", "--out", run.parent / "new", code=1)
    assert "complete: 12 steps" in invoke("train", "--resume", "--out", run)
    assert not (run / ".lnb.holder").exists()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom lnb_bench.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    kill_once((tmp_path / ".lnb.holder").exists, process, 60)
    assert (tmp_path / ".lnb.holder").read_text() == f"{process.pid}\n"
    started = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - started < 5
        assert (tmp_path / ".lnb.holder").read_text() == f"{os.getpid()}\n"


def test_settings_that_json_writes_in_another_way(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--task", "digits", "--optimizer", "adamw", "--width", 4, "--set", "betas=(0.8, 0.99)")
    invoke("train", *options, "--steps", 3, "--out", out)
    assert "at step 3" in invoke("train", "--resume", "--steps", 5, "--out", out)
    assert "--set 'eps={1, 2}': the value must be made of" in invoke("train", *options, "--set", "eps={1, 2}", code=2)
