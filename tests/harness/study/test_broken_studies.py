"""Suites, results and places that are not what they should be: an error that names file, line or entry, and the remedy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness_commands import invoke
from small_study import PROFILES, SUITE

from lnb_bench.study import Findings, Store, SuiteError, compare, families, load_profile, load_suite
from lnb_bench.study.markdown import markdown
from lnb_bench.study.parquet import from_parquet, to_parquet
from lnb_bench.study.profiles import save_profile
from lnb_bench.training import TrainingError
from lnb_bench.training.lock import locked


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(SUITE)
    invoke("run", folder / "small.toml", "--quick", "--out", folder / "runs")
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rates = { adamw = [0.03, 0.1, 0.3] }", "rates = 3", r"\[tasks.matrix\]: rates=3 must be a table, such as rates.ad"),
        ("steps = 24", "steps = 24\noptimizers = 3", r"\[tasks.digits\]: optimizers=3 must be a list of labels"),
        ("steps = 24", 'steps = 24\noptimizers = "adamw"', r"optimizers='adamw' must be a list of labels"),
        ("steps = 24", 'steps = 24\ntask = ["digits"]', r"\[tasks.digits\]: task=\['digits'\] must be one of digits"),
        ("steps = 24", "steps = 24\nmetric = 3", r"\[tasks.digits\]: metric=3 must be a text"),
        ("steps = 24", f"steps = {10**30}", r"steps=1000000000000000000000000000000 must be a whole number of at least 1"),
        ("{ width = 16 }", '{ width = "16" }', r"\[tasks.digits\]: width='16' must be a whole number"),
        ("{ width = 16 }", "{ invert = 1 }", r"\[tasks.digits\]: invert=1 must be true or false"),
        ("{ fused = true }", "{ since = 2020-01-01 }", r"\[optimizers.adamw\]: settings=.* must be made of finite numbers"),
        ("[optimizers.lnb]", "[optimizers.lnb]\noptimizer = []", r"\[optimizers.lnb\]: optimizer=\[\] must be one of lnb"),
        ('tasks = ["digits", "matrix"]', "tasks = [1, 2]", r"\[families.both\]: tasks=\[1, 2\] must be a list of labels"),
        ('measure = "steps_to_target"', "measure = {}", r"\[families.both\]: measure=\{\} must be one of final"),
        ("[families.both]", '[families."a/b"]', r"\[families.a/b\]: a label is made of letters, digits, - and _"),
        ("[families.both]", f"[families.{'a' * 300}]", "a label is made of letters, digits, - and _, at most 60"),
        ("seeds = [0, 1]", "seeds = [false, true]", r"seeds=\[False, True\] must be a list of different whole numbers"),
        ("seeds = [0, 1]", f"seeds = [{2**40}]", "seeds=.* must be a list of different whole numbers below 4294967296"),
        ('baseline = "adamw"', "baseline = []", r"baseline: \[\] must be one of lnb, adamw"),
        ('baseline = "adamw"', "extensions = 1000000000", "extensions=1000000000 must be a whole number of at least 0 and at"),
        ('baseline = "adamw"', "schedule = []", r"schedule=\[\] must be one of constant"),
        ("steps = 0.5", "steps = 1e300", r"steps=1e\+300 makes 24 steps more than 1000000000"),
        ('tasks = ["digits"]', "tasks = 3", r"\[quick\]: tasks=3 must be a list of labels"),
        ("seeds = [0, 1]", f"seeds = {'[' * 50_000}", "not a TOML file"),
    ],
)  # fmt: skip
def test_entries_of_the_wrong_kind(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SUITE
    file = tmp_path / "small.toml"
    file.write_text(SUITE.replace(old, new, 1))
    with pytest.raises(SuiteError, match=rf"small\.toml: .*{message}"):
        load_suite(file, "quick")
    assert "error: " in invoke("run", file, "--quick", "--out", tmp_path / "runs", code=1)
    assert not (tmp_path / "runs").exists()


def test_a_suite_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(SuiteError, match=r"pipe\.toml: cannot be read \(it is not a regular file\)"):
        load_suite(tmp_path / "pipe.toml")
    (tmp_path / "bytes.toml").write_bytes(b"seeds = [\xff]")
    with pytest.raises(SuiteError, match=r"bytes\.toml: not a TOML file \('utf-8' codec"):
        load_suite(tmp_path / "bytes.toml")


def metric(raw: dict[str, Any]) -> None:
    raw["metric"] = "acuracy"


def figure(raw: dict[str, Any]) -> None:
    values = raw["records"][-1]["values"]
    values["acuracy"] = values.pop("accuracy")


def step(raw: dict[str, Any]) -> None:
    raw["records"][-1]["step"] = 10**9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (metric, "metric='acuracy' must be one of its figures loss, accuracy"),
        (figure, "its figures at step 12 are loss, acuracy, before they are loss, accuracy"),
        (step, "is not in epoch"),
        (lambda raw: raw["records"].pop(), "its records do not go from an evaluation at step 0 to one at the end"),
        (lambda raw: raw["records"].clear(), "it has neither records nor a failure"),
        (lambda raw: raw["records"][0].update(step=None), "step=None must be a whole number of at least 0"),
        (lambda raw: raw.update(failure="none"), "it has records and a failure"),
        (lambda raw: raw.update(records=3), "records=3 must be a list"),
        (lambda raw: raw.update(environment=3), "environment=3 must be a table"),
        (lambda raw: raw["environment"].update(clock="sun"), "clock='sun' must be one of wall, cpu"),
        (lambda raw: raw.update(labels="ab"), "labels='ab' must be two texts"),
        (lambda raw: raw.update(wall="1"), "wall='1' must be a finite number"),
        (lambda raw: raw.pop("metric"), "it has no field 'metric'"),
        (lambda raw: raw["cell"].update(lr="0.1"), "it describes another run"),
    ],
)
def test_a_kept_run_that_was_changed(study: Path, change: Callable[[Any], object], message: str) -> None:
    file = next((study / "runs" / "cells").glob("digits.adamw.*.json"))
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))
    for command in (
        ("run", study / "small.toml", "--quick", "--out", study / "runs"),
        ("report", study / "small.toml", study / "runs", "--quick", "--out", study / "page"),
    ):
        output = invoke(*command, code=1)
        assert f"{file.name}: damaged (" in output
        assert message in output
        assert "remove it, and the run is made again" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(metric="acuracy"), "run 2: metric='acuracy' must be one of its figures loss, accuracy"),
        (
            lambda row: row["records"]["test"]["step"].append(99),
            "the columns of its test records have different lengths",
        ),
        (lambda row: row["records"]["test"].pop("step"), "the column 'step' of its test records must be a list"),
        (lambda row: row.update(environment={}), "run 2: versions=None must be a table of texts"),
        (lambda row: row.update(wall=None), "run 2: wall=None must be a finite number"),
    ],
)
def test_a_row_of_results_that_was_changed(study: Path, change: Callable[[Any], object], message: str) -> None:
    shutil.rmtree(study / "runs" / "cells")
    file = study / "runs" / "results.parquet"
    rows = list(from_parquet(file.read_bytes()))
    change(rows[1])
    file.write_bytes(to_parquet(rows))
    output = invoke("report", study / "small.toml", study / "runs", "--quick", "--out", study / "page", code=1)
    assert f"{file}: damaged (" in output
    assert message in output


@pytest.mark.parametrize("name", ["results.parquet", "cells"])
@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_something_else_in_place_of_results(study: Path, name: str, kind: str) -> None:
    file = study / "runs" / name if name == "results.parquet" else next((study / "runs" / "cells").glob("*"))
    if name == "results.parquet":
        shutil.rmtree(study / "runs" / "cells")
    file.unlink()
    os.mkfifo(file) if kind == "fifo" else file.mkdir()
    output = invoke("run", study / "small.toml", "--quick", "--out", study / "runs", code=1)
    assert f"{file}: " in output
    assert "it is not a regular file" in output


def test_two_processes_do_not_share_a_study(study: Path) -> None:
    with locked(study / "runs"):
        output = invoke("run", study / "small.toml", "--quick", "--out", study / "runs", code=1)
        assert f"{study / 'runs'}: another process (pid {os.getpid()}) works in this folder" in output
        invoke("report", study / "small.toml", study / "runs", "--quick", "--out", study / "page")  # which only reads


def test_markdown_is_no_html(finished: Path, tmp_path: Path) -> None:
    suite = load_suite(finished / "small.toml", "quick")
    comparisons = tuple(compare(suite, Store(finished / "runs")))
    save_profile(tmp_path / "p.json", "parts", "Model", {"<b>m</b>|": next(iter(PROFILES["parts"].values()))})
    profile = dataclasses.replace(load_profile(tmp_path / "p.json"), machine="<script>alert(1)</script>\n# & more")
    text = markdown(Findings(comparisons, tuple(families(suite, comparisons)), (profile,)), "a b")
    assert "<script" not in text
    assert "Machine: &lt;script&gt;alert(1)&lt;/script&gt; # &amp; more." in text
    assert "<b>" not in text
    assert "(a%20b/profile-parts.png)" in text


def test_a_note_in_markdown_is_no_html(study: Path) -> None:
    text = SUITE.replace('measure = "steps_to_target"', 'note = "<script>alert(1)</script>"')
    text = (
        text.replace("seeds = [0, 1]", "seeds = [0]")
        .replace("steps = 30", "steps = 12")
        .replace("steps = 24", "steps = 12")
    )
    (study / "small.toml").write_text(text)
    invoke("run", study / "small.toml", "--out", study / "runs")
    invoke("report", study / "small.toml", study / "runs", "--out", study / "page", "--markdown", study / "page.md")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in (study / "page.md").read_text()
    assert "<script" not in (study / "page.md").read_text() + (study / "page" / "index.html").read_text()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("parts", lambda raw: raw.update(title=3), "title=3 must be a text"),
        ("parts", lambda raw: raw.update(results={}), "it has no results"),
        ("parts", lambda raw: raw["results"].update(mlp={"a": None}), "TypeError"),
        ("parts", lambda raw: raw["results"]["mlp"]["paper"].update(solve="1"), "solve='1' must be a number"),
        ("memory", lambda raw: raw["results"][1].update(peaks={"64": 1.0}), "are not of the batches 64, 256"),
        (
            "product",
            lambda raw: raw["results"].update(more={"other": None}),
            "the methods of all layers must be the same",
        ),
    ],
)
def test_a_profile_that_was_changed(tmp_path: Path, kind: str, change: Callable[[Any], object], message: str) -> None:
    file = tmp_path / "profile.json"
    save_profile(file, kind, "A model", PROFILES[kind])
    load_profile(file)
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(TrainingError, match=rf"profile\.json: no profile of a training step .*{message}"):
        load_profile(file)
