"""Studies that search: equal trials, judged by seeds that nothing was chosen by, with the reasons of losses, and reported."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
from harness_commands import invoke

from lnb_bench.study import Cell, Outcome, Store, Suite, SuiteError, compare, findings, load_suite, run_suite, runner
from lnb_bench.study.endings import endings
from lnb_bench.study.environment import environment
from lnb_bench.study.markdown import markdown
from lnb_bench.study.measures import Comparison, Estimate
from lnb_bench.study.own_targets import own_target_table
from lnb_bench.study.performance import contestants, performance_table
from lnb_bench.study.question_words import question_table
from lnb_bench.study.reasons import questions
from lnb_bench.study.search import Knob, Knobs, draw
from lnb_bench.study.words import target_note
from lnb_bench.training import DEFAULT_LR, Record

SUITE = """
seeds = [0, 1, 2]
trials = 3
defaults = true
reasons = true
baseline = "adamw"

[optimizers.lnb.search]
lr = { low = 0.01, high = 1.0, log = true }
warmup = [0.0, 0.1]
max_relative_change = { low = 1.0, high = 5.0 }

[optimizers.adamw.search]
lr = { low = 1e-4, high = 1e-2, log = true }
warmup = [0.0, 0.1]
betas = [[0.9, 0.95], [0.9, 0.999]]
weight_decay = [0.0, 0.1]

[optimizers.adamw]
settings = { fused = true }

[tasks.digits]
options = { width = 16 }
steps = 12
batch_size = 64
evaluations = 4

[questions.both]
optimizers = ["lnb", "adamw"]
note = "Which?"

[quick]
trials = 1
"""


@pytest.fixture
def searching(tmp_path: Path) -> Path:
    path = tmp_path / "searching.toml"
    path.write_text(SUITE)
    return path


def test_trials_cover_the_box_evenly_and_are_the_same_again() -> None:
    knobs = {
        "lr": Knob(1e-4, 1e-2, log=True),
        "warmup": Knob(choices=(0.0, 0.1)),
        "betas": Knob(choices=([1], [2], [3])),
    }
    trials = draw(knobs, 24)
    assert draw(knobs, 9) == trials[:9]
    for half in ((1e-4, 1e-3), (1e-3, 1e-2)):
        assert 10 <= sum(half[0] <= lr < half[1] for lr, _, _, _ in trials) <= 14
    assert 10 <= sum(warmup == 0.1 for _, warmup, _, _ in trials) <= 14
    assert all(6 <= sum(settings == {"betas": [i]} for *_, settings in trials) <= 10 for i in (1, 2, 3))
    assert {decay for _, _, decay, _ in trials} == {None}
    assert draw(knobs, 0) == []


def test_everyone_has_as_many_trials_and_one_is_the_default(searching: Path) -> None:
    suite = load_suite(searching)
    (task,) = suite.tasks
    for optimizer in suite.optimizers:
        cells = suite.trials_of(task, optimizer)
        assert len(cells) == 3
        assert (cells[0].lr, cells[0].knobs.settings) == (DEFAULT_LR[optimizer.label], {})
        assert all(cell.seed == 0 for cell in cells)
        assert len({cell.name for cell in cells}) == 3
    assert suite.judged_seeds == (1, 2)
    assert load_suite(searching, "quick").trials == 1
    again = next(cell for cell in suite.tuning_cells(task) if cell.knobs.warmup)
    assert again.description()["warmup"] == 0.1
    assert "warmup" not in suite.default_cell(task, suite.optimizers[0], 0).description()  # kept results stay valid


def test_a_search_repeats_bit_for_bit_and_is_reported(searching: Path, tmp_path: Path) -> None:
    searching.write_text(SUITE.replace("seeds = [0, 1, 2]", "seeds = [0, 1]"))
    invoke("run", searching, "--out", tmp_path / "runs")
    suite = load_suite(searching)
    kept = Store(tmp_path / "runs")
    before = [p.outcome for p in run_suite(suite, kept)]
    again = [p.outcome for p in run_suite(suite, Store(tmp_path / "again"))]
    assert len(before) >= 2 * 3 + 2 * 1
    assert [strip(outcome) for outcome in before] == [strip(outcome) for outcome in again]
    document = tmp_path / "results.md"
    options = ("--out", tmp_path / "page", "--markdown", document, "--note", "A part of a study.")
    invoke("report", searching, tmp_path / "runs", *options)
    text = document.read_text()
    assert "## What this is\n\nA part of a study." in text
    assert re.search(r"^\| lnb \| [01] of [01] \| [01] \| ", text, re.M)
    assert "Every optimizer has the same number of trials, its default among them" in text
    assert "| default: s to target | default: steps to target | default: at the end | tuned to |" in text
    assert "## What it is worth: both\n\nWhich?" in text
    assert (tmp_path / "results" / "performance-profile.png").read_bytes().startswith(b"\x89PNG")


def strip(outcome: Outcome) -> tuple[object, ...]:
    """A run without what the clock says."""
    return outcome.cell, [dataclasses.replace(record, seconds=0.0) for record in outcome.records]


def made_up(suite: Suite, store: Store, monkeypatch: pytest.MonkeyPatch, slow: bool) -> Comparison:
    """Runs whose accuracy rises to 1: AdamW's at step 3, LNB's at step 6 of 12; with a metric of every step or with larger
    batches LNB's at step 3 too. ``slow``: LNB's at step 3 always, with steps that take three times as long."""

    def run(cell: Cell, task: object, clock: str) -> Outcome:
        ours = cell.optimizer.label == "lnb"
        better = cell.settings.get("refresh_every") == 1 or cell.task.batch_size != 64
        hit = 6 if ours and not better and not slow else 3
        pace = 3.0 if ours and slow else 1.0
        last = 1 - 0.1 * (cell.lr != DEFAULT_LR[cell.optimizer.label])
        steps = (0, 3, 6, 9, 12)
        records = tuple(Record(i, i / 12, "test", {"accuracy": last if i >= hit else i / 100}, pace * i) for i in steps)
        labels, where = (cell.task.label, cell.optimizer.label), environment() | {"clock": "wall"}
        return Outcome(cell.description(), labels, records, "accuracy", True, "", 1.0, where)

    monkeypatch.setattr(runner, "run_cell", run)
    list(run_suite(suite, store))
    (comparison,) = compare(suite, store)
    return comparison


def test_a_task_of_which_the_baseline_learns_nothing_has_no_target(
    searching: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values at the end are told all the same, tuned and as it is; that it could not learn either."""
    hard = '[tasks.hard]\ntask = "digits"\noptions = { width = 8 }\nsteps = 12\nbatch_size = 64\nevaluations = 4\n\n[questions'
    searching.write_text(SUITE.replace("[questions", hard))
    suite, store = load_suite(searching), Store(tmp_path / "runs")

    def run(cell: Cell, task: object, clock: str) -> Outcome:
        default, seed = cell.lr == DEFAULT_LR[cell.optimizer.label], cell.seed
        value = 0.5 if default else 0.7 + 0.1 * seed
        theirs = cell.optimizer.label == "adamw" and cell.task.label == "hard"
        failure = "it did not learn" if (seed == 0 if theirs else seed == 2 and default) else ""
        records = (
            () if failure else tuple(Record(i, i, "test", {"accuracy": value * i / 12}, i) for i in (0, 3, 6, 9, 12))
        )
        where = environment() | {"clock": "wall"}
        labels = (cell.task.label, cell.optimizer.label)
        return Outcome(cell.description(), labels, records, "accuracy", True, failure, 1.0, where)

    monkeypatch.setattr(runner, "run_cell", run)
    list(run_suite(suite, store))
    found = findings(suite, store)
    assert [comparison.task.label for comparison in found.comparisons] == ["digits"]
    (task,) = found.untargeted
    assert task.label == "hard"
    lnb, adamw = task.lines()
    assert lnb == ("lnb", lnb[1], "85.00% (80.00% to 90.00%)", "", "50.00%", "1")
    assert adamw == ("adamw", "none", "", "", "50.00%", "")
    page = markdown(found, "results-hard")
    assert "learnt in none of its trials" in page[page.index("## hard") :]


def test_why_a_loss_is_a_loss(searching: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, store = load_suite(searching), Store(tmp_path / "runs")
    comparison = made_up(suite, store, monkeypatch, slow=False)
    (question,) = questions(suite, comparison)
    assert [len(part) for part in (question.fresh, question.large, question.others_large)] == [2, 2, 2]
    (reason,) = findings(suite, store).reasons
    assert (reason.other, reason.steps, reason.cost) == ("adamw", 2.0, 1.0)
    assert (reason.fresh, reason.large, reason.reason) == (1.0, 1.0, "drift and noise")
    text = markdown(findings(suite, store), "folder")
    assert "| digits | adamw | 2.00 | 1.00 | 1.00 | 1.00 | drift and noise |" in text
    for cell in question.large:
        store.file(cell).unlink()
    (reason,) = findings(suite, Store(store.path)).reasons
    assert math.isnan(reason.large)
    assert reason.reason == "drift"


def test_a_loss_by_cost(searching: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, store = load_suite(searching), Store(tmp_path / "runs")
    comparison = made_up(suite, store, monkeypatch, slow=True)
    assert questions(suite, comparison) == []
    (reason,) = findings(suite, store).reasons
    assert (reason.steps, reason.cost, reason.reason) == (1.0, 3.0, "cost")


def test_profiles_and_variants(searching: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, store = load_suite(searching), Store(tmp_path / "runs")
    comparison = made_up(suite, store, monkeypatch, slow=True)
    assert [row.lr for row in comparison.rows] == [0.4, 0.001]  # the default is the best trial
    assert [row.knobs for row in comparison.rows] == [Knobs(), Knobs()]  # without what the suite sets for all trials
    assert [len(row.runs) for row in comparison.rows] == [2, 2]  # without the seed that it was chosen by
    assert endings([comparison]) == ["digits: lnb ends at 100.00%, not clearly apart from adamw."]
    behind = Estimate(0.5, 0.4, 0.6)
    worse = dataclasses.replace(
        comparison, rows=(dataclasses.replace(comparison.rows[0], final=behind), *comparison.rows[1:])
    )
    assert endings([worse]) == [
        (
            "digits: lnb ends at 50.00% (40.00% to 60.00%), clearly worse than adamw. "
            "The best on its way was 100.00%, after 3 of 12 steps."
        )
    ]
    lower = dataclasses.replace(worse, higher_is_better=False)
    assert endings([lower])[0].endswith("clearly better than adamw.")
    assert all(row.default is not None and row.default.final == row.final for row in comparison.rows)
    assert own_target_table([comparison]) == [
        ("digits", "tuned", "3.00"), ("there first", "tuned", "0 of 1"),
        ("digits", "as it is", "3.00"), ("there first", "as it is", "0 of 1"),
    ]  # fmt: skip
    lower = [dataclasses.replace(r, values={"accuracy": 0.99}) for r in comparison.rows[0].runs[0].records]
    slower = dataclasses.replace(
        comparison.rows[0], runs=(dataclasses.replace(comparison.rows[0].runs[0], records=tuple(lower)),)
    )
    assert own_target_table([dataclasses.replace(comparison, rows=(slower, *comparison.rows[1:]))])[0][2] == "never"
    assert "12 steps, 3 trials of every optimizer, 2 judged seeds." in target_note(comparison)
    never = dataclasses.replace(
        comparison,
        rows=tuple(
            dataclasses.replace(row, seconds_to_target=None, steps_to_target=None) for row in comparison.rows[:1]
        )
        + comparison.rows[1:],
    )
    found = {(one.label, one.default): one for one in contestants([comparison, never])}
    lnb = found["lnb", False]
    assert lnb.ratios["seconds_to_target"] == (3.0, math.inf)
    assert [lnb.share("seconds_to_target", factor) for factor in (1, 3, 4)] == [0, 0.5, 0.5]
    assert lnb.score("seconds_to_target") == pytest.approx((4 - 3) / 3 / 2)
    assert found["adamw", True].score("steps_to_target") == 1
    assert performance_table([comparison, never])[0][:4] == ("adamw", "2 of 2", "2", "1.00")
    lines = question_table(suite.questions[0], [comparison, never])
    assert lines[1] == ("adamw", "100.00%, x1.00", "100.00%", "x1.00", "x0.33")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 3", "trials = -1", "trials=-1 must be a whole number of at least 0"),
        ("defaults = true", "defaults = 1", "defaults=1 must be true or false"),
        ("warmup = [0.0, 0.1]", "warmup = [0.0, 1.0]", r"search.warmup=1.0 must be below 1"),
        ("low = 0.01, high = 1.0", "low = 1.0, high = 0.01", r"search.lr: low=1.0 must be below high=0.01"),
        ("low = 0.01,", "low = 0,", r"search.lr=0 must be a finite number above 0"),
        ("low = 0.01,", "least = 0.01,", r"search.lr: unknown entry 'least'"),
        ("[[0.9, 0.95], [0.9, 0.999]]", "[]", r"search.betas=\[\] must have at least one choice"),
        ("lr = { low = 1e-4, high = 1e-2, log = true }", "", r"\[optimizers.adamw\]: search=.* must be a table with at least lr"),
        ('optimizers = ["lnb", "adamw"]', 'optimizers = ["lnb"]', r"\[questions.both\]: optimizers=\['lnb'\] must be a list"),
        ('optimizers = ["lnb", "adamw"]', 'optimizers = ["lnb", "x"]', r"\[questions.both\]: 'x' must be one of lnb, adamw"),
    ],
)  # fmt: skip
def test_bad_searches(searching: Path, old: str, new: str, message: str) -> None:
    assert old in SUITE
    searching.write_text(SUITE.replace(old, new, 1))
    with pytest.raises(SuiteError, match=message):
        load_suite(searching)


def test_an_unknown_knob(searching: Path, tmp_path: Path) -> None:
    searching.write_text(SUITE.replace("max_relative_change", "max_relative_chagne"))
    output = invoke("run", searching, "--out", tmp_path / "runs", code=1)
    assert "[optimizers.lnb]: lnb has no setting 'max_relative_chagne'; it has momentum, " in output
    assert not (tmp_path / "runs" / "cells").exists()
