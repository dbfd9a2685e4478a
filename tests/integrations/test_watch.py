"""The watch logs when it is due and reads nothing otherwise, and ``lnb watch`` shows what it logged."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import lnb
from lnb.cli.app import app
from lnb.cli.watch import run_watch
from lnb.integrations.watch import Watch
from lnb.reports.watch_file import NAME, Record, Tail, WatchFile

FIGURES = {"gain", "input_condition", "input_rank", "dead_inputs", "inputs", "refresh_age"}


class Memory:
    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> None:
        self.points.setdefault(tag, []).append((global_step, float(scalar_value)))


def make() -> tuple[nn.Sequential, lnb.LNB]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return model, lnb.LNB(model)


def step(model: nn.Module, optimizer: lnb.LNB) -> torch.Tensor:
    optimizer.zero_grad()
    loss = model(torch.randn(20, 6)).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def test_only_steps_that_are_due_are_logged_and_only_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read is a call of ``diagnostics``, or of the float of a tensor that was noted."""
    model, optimizer = make()
    reads: list[int] = []
    original = optimizer.diagnostics
    monkeypatch.setattr(optimizer, "diagnostics", lambda **k: (reads.append(optimizer.step_index), original(**k))[1])
    memory = Memory()

    class Unread(torch.Tensor):
        def __float__(self) -> float:
            reads.append(-optimizer.step_index)
            return 0.5

    with Watch(optimizer, tmp_path / "new" / "run", every=4, tensorboard=False, writers=[memory]) as watch:
        for _ in range(9):
            watch.note(loss=torch.zeros(()).as_subclass(Unread))
            step(model, optimizer)
            watch.after_step()  # as steps that a graph replays need it: it logs no step twice
    step(model, optimizer)
    step(model, optimizer)
    step(model, optimizer)  # the 12th: it is closed
    assert reads == [-4, 4, -8, 8]
    records = Tail(tmp_path / "new" / "run" / NAME).read()
    assert [record.step for record in records] == [4, 8]
    assert records[1].run == {"loss": 0.5, "steps": 8, "skipped_steps": 0}
    assert records[1].layers.keys() == {"0", "2"}
    assert all(figures.keys() >= FIGURES for figures in records[1].layers.values())
    assert [at for at, _ in memory.points["lnb/layer/2/dead_inputs"]] == [4, 8]
    assert memory.points["lnb/layer/0/gain"][1] == (8, records[1].layers["0"]["gain"])


def test_with_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="NO TENSORBOARD: other logs are tested with a writer of the test alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        model, optimizer = make()
        with Watch(optimizer, tmp_path, every=1):
            step(model, optimizer)
        read = EventAccumulator(str(tmp_path))
        read.Reload()
    assert "lnb/layer/2/input_condition" in read.Tags()["scalars"]
    assert (tmp_path / NAME).exists()


def test_a_run_that_goes_on_adds_to_the_file(tmp_path: Path) -> None:
    """Also where the process before it was killed in the middle of a line; a reader sees whole lines alone."""
    path = tmp_path / NAME
    file = WatchFile(path, ["a"])
    tail = Tail(path)
    assert tail.read() == []
    first = Record(1, 5.0, {"loss": math.inf}, {"a": {"gain": 0.1, "input_condition": math.nan}})
    file.write(first)
    with path.open("ab") as torn:
        torn.write(b'{"step": 2, "ti')
    (found,) = tail.read()
    assert (found.run, found.layers["a"]["gain"]) == ({"loss": math.inf}, 0.1)
    assert math.isnan(found.layers["a"]["input_condition"])
    WatchFile(path, ["a"]).write(Record(3, 6.0))
    assert [record.step for record in tail.read()] == [3]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_full_disk_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make()
    Watch(optimizer, tmp_path, every=1, tensorboard=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WatchFile, "write", full)
    with pytest.warns(UserWarning, match=r"goes on unwatched: .*watch.jsonl cannot be written: .*No space left"):
        step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer)  # it is closed


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer = make()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    watch = Watch(optimizer, tmp_path / "run")
    watch.log()
    watch.close()
    assert not (tmp_path / "run").exists()
    assert not optimizer._optimizer_step_post_hooks


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    model, optimizer = make()
    with pytest.raises(TypeError, match=r"optimizer must be an lnb.LNB, not SGD; .*optimizer.optimizer"):
        Watch(torch.optim.SGD(model.parameters()), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every=0"):
        Watch(optimizer, tmp_path, every=0)
    (tmp_path / NAME).write_text("step,loss\n1,2\n")
    with pytest.raises(
        ValueError, match=r"watch.jsonl is no file of lnb.integrations.watch.*another one for a new run"
    ):
        Watch(optimizer, tmp_path)
    assert (tmp_path / NAME).read_text() == "step,loss\n1,2\n"


def shown(path: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["watch", str(path), *options], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_shows_the_latest_record(tmp_path: Path) -> None:
    model, optimizer = make()
    with torch.no_grad():
        model[0].bias[:2] = -1e3  # two units that never open
    with Watch(optimizer, tmp_path / "a", every=1, tensorboard=False) as watch:
        for _ in range(3):
            watch.note(loss=1.25)
            step(model, optimizer)
    for path in (tmp_path / "a", tmp_path / "a" / NAME, tmp_path):
        text = shown(path)
        assert "step 3" in text
        assert "loss 1.25" in text
    row = next(line for line in text.splitlines() if line.startswith("  2 "))
    assert row.split()[-5:] == ["3", "of", "5", "2", "0"]  # rank, dead inputs, and the age: first steps refresh
    assert text.index("\n  0 ") < text.index("\n  2 ")
    by_dead = shown(tmp_path, "--sort", "dead")
    assert by_dead.index("\n  2 ") < by_dead.index("\n  0 ")


def test_eighty_columns_show_every_number(tmp_path: Path) -> None:
    """The names of layers give way, and nothing else."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a_name_that_is_far_too_long_for_the_screen": nn.Linear(300, 4)})
    optimizer, x = lnb.LNB(model), torch.randn(400, 300)
    with Watch(optimizer, tmp_path, every=1, tensorboard=False) as watch:
        for _ in range(12):
            watch.note(loss=1.0)
            optimizer.zero_grad()
            next(iter(model.values()))(x).square().mean().backward()
            optimizer.step()
    result = CliRunner().invoke(app, ["watch", str(tmp_path)], env={"COLUMNS": "80"})
    table = result.output[result.output.index("layer") :]
    assert max(map(len, table.splitlines())) <= 80
    assert table.count("…") == 1
    assert "300 of 300" in table


def test_the_screen_follows_the_file_and_fits_the_terminal(tmp_path: Path) -> None:
    file = WatchFile(tmp_path / NAME, [])
    console = Console(force_terminal=True, width=120, height=14, record=True, file=open(tmp_path / "out", "w"))  # noqa: SIM115
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 3:
            raise KeyboardInterrupt
        layers = {f"layer{i}": {"gain": 10.0 ** (i + len(asked))} for i in range(40)}
        file.write(Record(10 * len(asked), 100.0 + len(asked), {"skipped_steps": 2}, layers))

    run_watch(tmp_path, 0.5, "gain", False, console, sleep)
    console.file.close()
    text = console.export_text()
    assert asked == [0.5] * 3
    assert "nothing is logged yet" in text
    last = text[text.rindex("step 20") :]
    assert "10 steps a second" in last
    assert "skipped_steps 2" in last
    assert "35 more layers" in last
    assert "layer39" in last
    assert "layer34" not in last
    assert "▁█" in last


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / NAME).write_text('{"format": "lnb-watch", "version": 1, "layers": []}\n{"step": 1}\n')
    for arguments, code, message in [
        ([str(tmp_path / "none")], 1, "there is no watch.jsonl in it"),
        ([str(tmp_path / "broken")], 1, "it is damaged (line 2: 'layers')"),
        ([str(tmp_path), "--sort", "size"], 2, "--sort 'size' must be one of model, gain"),
        ([str(tmp_path), "--interval", "0"], 2, "--interval 0.0"),
    ]:
        result = CliRunner().invoke(app, ["watch", *arguments], env={"COLUMNS": "300"})
        assert result.exit_code == code
        assert message in " ".join(result.output.split())
