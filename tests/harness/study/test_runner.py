"""Running a study: nothing twice, nothing lost, the same series for the same seed, no time for a diverged run."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_commands import invoke
from killing import kill_once

import lnb
import lnb_bench
import lnb_kernels
from lnb_bench.cli.study import duration
from lnb_bench.study import Cell, Outcome, Store, Suite, compare, load_suite, run_suite, runner
from lnb_bench.study.environment import environment
from lnb_bench.study.memory import peak_bytes
from lnb_bench.study.parquet import from_parquet
from lnb_bench.training import OPTIMIZERS, Record, TrainingError, files, peers


def series(folder: Path) -> dict[str, Any]:
    """Every kept run's series without the times."""
    found = {}
    for file in sorted((folder / "cells").glob("*.json")):
        raw = json.loads(file.read_text())
        found[file.name] = [{k: v for k, v in r.items() if k != "seconds"} for r in raw["records"]], raw["failure"]
    return found


def test_a_killed_study_goes_on_and_repeats_nothing(suite_file: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "lnb_bench", "run", str(suite_file), "--out", str(killed), "--threads", "1"]
    packages = [
        str(Path(package.__file__).parents[1]) for package in (lnb, lnb_bench, lnb_kernels)
    ]  # the ones under test here
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(packages)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, cwd=tmp_path)
    kill_once(lambda: len(list((killed / "cells").glob("*.json"))) >= 3, process, 300)
    before = {file: file.stat().st_mtime_ns for file in (killed / "cells").glob("*.json")}
    assert 3 <= len(before) < 13
    (killed / "cells" / ".cut.json.x.tmp").write_text("{")  # what a kill between write and rename leaves

    threads = torch.get_num_threads()
    try:
        assert "13 runs in" in invoke("run", suite_file, "--out", killed, "--threads", 1)
        invoke("run", suite_file, "--out", whole, "--threads", 1)
    finally:
        torch.set_num_threads(threads)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not list((killed / "cells").glob(".*"))
    assert len(series(whole)) == 13
    assert series(killed) == series(whole)


def quick(suite_file: Path) -> Suite:
    return load_suite(suite_file, "quick")


def test_progress_and_environment(suite_file: Path, tmp_path: Path) -> None:
    seen = list(run_suite(quick(suite_file), Store(tmp_path / "runs")))
    assert [(p.done, p.total, p.kept) for p in seen] == [(1, 2, False), (2, 2, False)]
    assert seen[0].seconds_left > 0
    assert seen[-1].seconds_left == 0
    where = seen[0].outcome.environment
    assert where["versions"]["torch"] == torch.__version__
    assert where["processor"]
    assert where["threads"] == torch.get_num_threads()
    assert [p.kept for p in run_suite(quick(suite_file), Store(tmp_path / "runs"))] == [True, True]


def test_evaluation_on_the_first_examples(suite_file: Path, tmp_path: Path) -> None:
    suite_file.write_text(suite_file.read_text().replace("steps = 24", "steps = 24\ntest_examples = 50"))
    for progress in run_suite(quick(suite_file), Store(tmp_path / "runs")):
        hits = [50 * record.values["accuracy"] for record in progress.outcome.records if record.split == "test"]
        assert hits == pytest.approx([round(hit) for hit in hits])
        assert max(hits) <= 50


def test_a_diverged_run_has_no_time_and_the_study_goes_on(suite_file: Path, tmp_path: Path) -> None:
    suite_file.write_text(suite_file.read_text().replace("[0.03, 0.1, 0.3]", "[0.1, 1e200]"))
    suite = load_suite(suite_file).only(["matrix"], ["adamw"])
    store = Store(tmp_path / "runs")
    last = list(run_suite(suite, store))[-1]
    assert (last.done, last.total) == (3, 3)
    outcomes = {c.lr: store.load(c) for c in suite.tuning_cells(suite.tasks[0])}
    diverged = outcomes[1e200]
    assert diverged is not None
    assert "diverged" in diverged.failure
    assert diverged.records == ()
    assert outcomes[0.1] is not None
    assert outcomes[0.1].final < 1


def test_a_run_that_ends_no_better_than_it_began_has_no_time(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    seen = list(run_suite(quick(suite_file), Store(tmp_path / "runs")))
    outcome = next(p.outcome for p in seen if p.outcome.labels[1] == "adamw")
    assert re.fullmatch(r"it did not learn: accuracy (\S+) before the first step, \1 at the end", outcome.failure)
    assert outcome.records == ()


@pytest.mark.parametrize(("power", "added"), [(1, [0.03333, 0.1111]), (-1, [0.0009, 0.00027])])
def test_a_grid_grows_while_its_best_is_at_an_edge(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power: int, added: list[float]
) -> None:
    """Values at the end by rate, made up: AdamW's rise or fall with the rate for ever, LNB's are best in the middle."""

    def made_up(cell: Cell, task: object, clock: str) -> Outcome:
        value = cell.lr**power if cell.optimizer.label == "adamw" else 1 / (1 + abs(math.log10(cell.lr / 0.03)))
        records = tuple(Record(i, 1.0, "test", {"accuracy": i * value}, 1.0) for i in (0, 1))
        labels = (cell.task.label, cell.optimizer.label)
        return Outcome(
            cell.description(), labels, records, "accuracy", True, "", 1.0, environment() | {"clock": "wall"}
        )

    monkeypatch.setattr(runner, "run_cell", made_up)
    suite_file.write_text(suite_file.read_text().replace("[0.01, 0.03]", "[0.01, 0.03, 0.1]", 1))
    suite = dataclasses.replace(load_suite(suite_file).only(["digits"], None), extensions=2)
    store = Store(tmp_path / "runs")
    seen = list(run_suite(suite, store))
    tried = [(p.cell.optimizer.label, p.cell.lr, p.cell.seed) for p in seen]
    assert tried[5:] == [*(("adamw", lr, 0) for lr in added), ("lnb", 0.03, 1), ("adamw", added[1], 1)]
    assert (seen[-1].done, seen[-1].total, seen[-1].seconds_left) == (9, 9, 0)
    (comparison,) = compare(suite, store)
    assert [lr for lr, _ in comparison.tuning["adamw"]] == sorted([0.003, 0.01, *added])
    assert [(row.lr, row.rate_at_edge) for row in comparison.rows] == [(0.03, False), (added[1], True)]


def test_one_file_is_enough_for_a_report(suite_file: Path, tmp_path: Path) -> None:
    store, suite = Store(tmp_path / "runs"), quick(suite_file)
    outcomes = [p.outcome for p in run_suite(suite, store)]
    packed = store.pack()
    shutil.rmtree(store.path / "cells")
    again = Store(store.path)
    for cell, outcome in zip(suite.tuning_cells(suite.tasks[0]), outcomes, strict=True):
        read = again.load(cell)
        assert read is not None
        rounded = [dataclasses.replace(record, seconds=round(record.seconds, 6)) for record in outcome.records]
        assert read == dataclasses.replace(outcome, records=tuple(rounded))
    assert [p.kept for p in run_suite(suite, again)] == [True, True]
    assert again.pack().read_bytes() == packed.read_bytes()  # what has no file of its own stays
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(
        TrainingError, match=r"results.parquet: damaged .*; remove it, and the runs that it held are made"
    ):
        Store(store.path).load(suite.tuning_cells(suite.tasks[0])[0])


def test_the_finished_study_is_packed(suite_file: Path, tmp_path: Path) -> None:
    invoke("run", suite_file, "--quick", "--out", tmp_path / "runs")
    assert len(list(from_parquet((tmp_path / "runs" / "results.parquet").read_bytes()))) == 2


def test_clocks(suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runner.CLOCKS, "cpu", iter(range(10**6)).__next__)  # one tick within each step
    seen = list(run_suite(quick(suite_file), Store(tmp_path / "runs"), clock="cpu"))
    assert [p.outcome.environment["clock"] for p in seen] == ["cpu", "cpu"]
    assert [p.outcome.records[-1].seconds for p in seen] == [12, 12]
    bench = ("run", suite_file, "--quick", "--out", tmp_path / "runs")
    assert "give --threads 1 too" in invoke(*bench, "--clock", "cpu", code=2)
    assert "--clock sun: must be one of wall, cpu" in invoke(*bench, "--clock", "sun", code=2)


def test_memory_of_every_run(suite_file: Path, tmp_path: Path) -> None:
    suite = load_suite(suite_file).only(["digits"], None)
    peaks: dict[str, set[int | None]] = {}
    for progress in run_suite(suite, Store(tmp_path / "runs")):
        peaks.setdefault(progress.outcome.labels[1], set()).add(progress.outcome.peak_bytes)
    assert all(len(found) == 1 for found in peaks.values())
    lnb_peak, adamw_peak = (peaks[label].pop() for label in ("lnb", "adamw"))
    assert lnb_peak is not None
    assert adamw_peak is not None
    parameters = 4 * sum(m * (d + 1) for d, m in ((64, 16), (16, 10)))
    assert lnb_peak > adamw_peak > 4 * parameters  # with gradients and two averages of them


def test_peak_of_known_tensors() -> None:
    def allocate() -> None:
        a = torch.empty(1_000_000)
        del a
        b, c = torch.empty(500_000), torch.empty(700_000)
        del b, c

    assert peak_bytes(allocate) == pytest.approx(4_800_000, rel=1e-3)


def test_damaged_data_keep_what_is_finished(suite_file: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "camvid_train.npz").write_bytes(b"PK not an archive")
    text = suite_file.read_text().split("[tasks.matrix]")[0] + "[tasks.camvid]\nsteps = 2\nevaluations = 1\n"
    suite_file.write_text(text)
    output = invoke("run", suite_file, "--out", tmp_path / "runs", "--data", tmp_path / "data", code=1)
    assert "camvid_train.npz" in output
    assert "error:" in output
    assert len(series(tmp_path / "runs")) == 6  # every run of the task before


def test_a_failing_run_says_why_and_the_study_goes_on(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, closure: object = None) -> None:
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    seen = list(run_suite(quick(suite_file), Store(tmp_path / "runs")))
    name = torch.linalg.LinAlgError.__name__
    assert [(p.outcome.labels[1], p.outcome.failure) for p in seen] == [("lnb", ""), ("adamw", f"{name}: singular")]
    assert seen[1].outcome.records == ()


def test_a_full_disk_keeps_what_is_finished(suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, suite = Store(tmp_path / "runs"), quick(suite_file)
    running = run_suite(suite, store)
    next(running)
    kept = series(store.path)

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", no_space)
        with pytest.raises(TrainingError, match=r"No space left on device\); the runs finished before are kept. Make"):
            next(running)
    assert series(store.path) == kept
    assert [p.kept for p in run_suite(suite, store)] == [True, False]


def test_a_damaged_result_is_named(suite_file: Path, tmp_path: Path) -> None:
    store, suite = Store(tmp_path / "runs"), quick(suite_file)
    list(run_suite(suite, store))
    file = store.file(suite.tuning_cells(suite.tasks[0])[0])
    file.write_text(file.read_text()[:-9])
    output = invoke("run", suite_file, "--quick", "--out", store.path, code=1)
    assert f"{file.name}: damaged" in output.replace(" ", "").replace("damaged", " damaged")
    assert "remove it, and the run is made again" in output


def test_peers_that_are_missing_or_broken(suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_file.write_text(suite_file.read_text().replace("[optimizers.lnb]", "[optimizers.soap]"))
    soap = peers.PEERS["soap"]
    monkeypatch.setitem(peers.PEERS, "soap", dataclasses.replace(soap, package="no_such_package_of_peers"))
    output = invoke("run", suite_file, "--out", tmp_path / "runs", code=1)
    assert "optimizer 'soap' needs the package 'no_such_package_of_peers'" in output
    assert "pip install './bench[peers]'" in output
    (tmp_path / "broken_peers.py").write_text("raise OSError('libpeer.so is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(peers.PEERS, "soap", dataclasses.replace(soap, package="broken_peers"))
    output = invoke("run", suite_file, "--out", tmp_path / "runs", code=1)
    assert "importing broken_peers failed (OSError: libpeer.so is missing)" in output
    assert not (tmp_path / "runs" / "cells").exists()
    output = invoke("run", suite_file, "--out", tmp_path / "runs", "--task", "digits", "--skip-missing")
    assert "left out: optimizer 'soap': importing broken_peers failed" in output
    assert "3 runs in" in output  # AdamW's


@pytest.mark.parametrize("peer", [name for name in OPTIMIZERS if name not in ("lnb", "adamw")])
def test_the_others_learn_and_repeat_bit_for_bit(peer: str, suite_file: Path, tmp_path: Path) -> None:
    if peer in peers.PEERS:
        package = peers.PEERS[peer].package.partition(".")[0]
        pytest.importorskip(package, reason=f"NO PEER {peer}: {package} is not installed: it is untested")
    suite_file.write_text(
        suite_file.read_text().replace("[optimizers.lnb]", f"[optimizers.{peer}]").replace("[0.01, 0.03]", "[0.03]")
    )
    suite = load_suite(suite_file).only(["digits"], [peer])
    suite = dataclasses.replace(suite, seeds=(0,))
    for folder in ("one", "two"):
        list(run_suite(suite, Store(tmp_path / folder)))
    assert series(tmp_path / "one") == series(tmp_path / "two")
    for records, _ in series(tmp_path / "one").values():
        first, last = (records[i]["values"]["loss"] for i in (0, -1))
        assert last < 0.98 * first


def test_missing_data_and_wrong_use(suite_file: Path, tmp_path: Path) -> None:
    text = suite_file.read_text().replace("[tasks.digits]\noptions = { width = 16 }", "[tasks.camvid]")
    suite_file.write_text(text.replace('["digits", "matrix"]', '["camvid", "matrix"]'))
    (tmp_path / "empty").mkdir()
    arguments = ("run", suite_file, "--out", tmp_path / "runs", "--data", tmp_path / "empty")
    assert "camvid_train.npz: no such file" in invoke(*arguments, code=1)
    assert "exclude each other" in invoke(*arguments, "--quick", "--full", code=2)
    assert "'mnits' must be one of camvid, matrix" in invoke(*arguments, "--task", "mnits", code=1)


def test_durations() -> None:
    assert [duration(s) for s in (40, 600, 12_000)] == ["40 s", "10 min", "3 h 20 min"]
