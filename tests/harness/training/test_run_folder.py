"""Runs on disk: atomic checkpoints, clear errors for damaged ones, a metric series without gaps or duplicates."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lnb_bench.training import (
    CheckpointError,
    LoopConfig,
    OptimizerConfig,
    RunFolder,
    Task,
    Trainer,
    TrainingError,
    train,
)
from lnb_bench.training.checkpoint import load_checkpoint, save_checkpoint
from lnb_bench.training.files import write_atomically

STATE = {"step": 3, "tensor": torch.arange(5.0), "nested": [{"name": "x", "value": 0.5}]}


class Killed(BaseException):
    """Stands for the end of the process."""


def trainer_of(task: Task, steps: int = 20) -> Trainer:
    return Trainer(task, OptimizerConfig("adamw", lr=0.01), LoopConfig(steps=steps, log_every=3, evaluate_every=7))


def series(folder: RunFolder) -> list[tuple[Any, ...]]:
    return [(record.step, record.split, record.values) for record in folder.records()]


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", STATE)
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded["step"] == 3
    assert torch.equal(loaded["tensor"], STATE["tensor"])  # type: ignore[arg-type]
    assert loaded["nested"] == STATE["nested"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("crash_in", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, STATE)
    old = path.read_bytes()

    def crash(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(os, crash_in, crash)
    with pytest.raises(Killed):
        save_checkpoint(path, {**STATE, "step": 4})
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_content_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths))[1])
    write_atomically(tmp_path / "f", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, STATE)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"c: the checkpoint cannot be written \(No space left.*intact.*--resume"):
        save_checkpoint(path, {**STATE, "step": 4})
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for position in (20, len(whole) // 2, len(whole) - 1):
        content = bytearray(whole)
        content[position] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(CheckpointError, match=r"c: damaged \(its digest does not match\)"):
            load_checkpoint(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "none")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    save_checkpoint(tmp_path / "c", {"x": Harmful()})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(tmp_path / "c")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("stop_at", "kept"), [(3, 0), (9, 8), (12, 8), (15, 12)])
def test_an_interrupted_run_has_the_series_of_a_whole_one(
    tiny_task: Task, tmp_path: Path, stop_at: int, kept: int
) -> None:
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    whole.create({})
    wanted = trainer_of(tiny_task)
    list(train(wanted, whole, checkpoint_every=4))

    cut.create({})
    for record in train(trainer_of(tiny_task), cut, checkpoint_every=4):
        if record.step == stop_at:
            break  # the process ends here, before the checkpoint of this step
    with cut.metrics.open("a") as file:
        file.write('{"step": 19, "epo')  # killed in the middle of a line
    (cut.path / ".checkpoint.lnb.abc.tmp").write_bytes(b"half")
    resumed = trainer_of(tiny_task)
    cut.rewind(resumed)
    assert resumed.step == kept
    list(train(resumed, cut, checkpoint_every=4))
    assert series(cut) == series(whole)
    assert not list(cut.path.glob(".*.tmp"))
    for name, value in torch.load(whole.model, weights_only=True).items():
        assert torch.equal(value, torch.load(cut.model, weights_only=True)[name]), name


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.is_empty()
    folder.create({"task": "digits"})
    assert folder.read_description() == {"task": "digits"}
    with pytest.raises(TrainingError, match=r"holds another run \(run\.json\); continue it with --resume"):
        folder.create({"task": "mnist"})
    assert folder.read_description() == {"task": "digits"}


def test_damaged_description_and_series(tmp_path: Path, tiny_task: Task) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(TrainingError, match="no run to resume"):
        folder.read_description()
    folder.create({})
    folder.description.write_text("{")
    with pytest.raises(TrainingError, match=r"run\.json: cannot be read"):
        folder.read_description()
    folder.description.write_text("[]")
    with pytest.raises(TrainingError, match="holds list"):
        folder.read_description()
    folder.metrics.write_text('nonsense\n{"step": 1}\n')
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: line 1 is damaged"):
        folder.rewind(trainer_of(tiny_task))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").create({})


def test_full_disk_at_a_metric_line(tmp_path: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.create({})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written \(No space left.*--resume"):
        list(train(trainer_of(tiny_task), folder))


def test_checkpoint_interval(tiny_task: Task) -> None:
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        list(train(trainer_of(tiny_task), checkpoint_every=0))
