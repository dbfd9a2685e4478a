"""Measures against figures worked out by hand, from made-up runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from pathlib import Path

import pytest

from lnb_bench.study import Cell, Family, Outcome, Store, Suite, SuiteFamily, compare, families, load_suite
from lnb_bench.study.family_words import family_headers, family_note, family_sentences, family_table
from lnb_bench.study.measures import estimate
from lnb_bench.study.words import LOSS, TIE, WIN, caution, duels, machines, overview, summary, table
from lnb_bench.training import Record, TrainingError

Curves = dict[tuple[str, float, int], list[float] | None]


def outcome(cell: Cell, values: list[float] | None, seconds_per_step: float) -> Outcome:
    """A run of ten steps per evaluation; None: diverged."""
    records = tuple(
        Record(10 * i, i / 2, "test", {"loss": 1 - value, "accuracy": value}, 10 * i * seconds_per_step)
        for i, value in enumerate(values or [])
    )
    failure = "" if values else "the loss is nan"
    labels = (cell.task.label, cell.optimizer.label)
    where = {"versions": {"torch": "2"}, "processor": "abacus", "cores": 2, "threads": 1, "clock": "wall"}
    peak = 3_000_000 if cell.optimizer.label == "lnb" else 2_000_000
    return Outcome(cell.description(), labels, records, "accuracy", True, failure, 1.0, where, peak)


def made_up(suite_file: Path, tmp_path: Path, curves: Curves) -> tuple[Suite, Store]:
    """The digits of the suite with ``curves`` by optimizer, rate and seed; a step of LNB takes 2 s, of AdamW 1 s."""
    suite, store = load_suite(suite_file).only(["digits"], None), Store(tmp_path / "runs")
    optimizers = {optimizer.label: optimizer for optimizer in suite.optimizers}
    for (label, lr, seed), values in curves.items():
        cell = Cell(suite.tasks[0], optimizers[label], lr, seed, suite.schedule)
        store.save(cell, outcome(cell, values, 2.0 if label == "lnb" else 1.0))
    return suite, store


CURVES: Curves = {
    ("lnb", 0.01, 0): [0.1, 0.7, 0.9],
    ("lnb", 0.03, 0): [0.1, 0.8, 0.89],
    ("lnb", 0.01, 1): [0.1, 0.8, 0.9],
    ("adamw", 0.003, 0): [0.1, 0.2, 0.6],
    ("adamw", 0.01, 0): None,
    ("adamw", 0.003, 1): [0.1, 0.3, 0.5],
}


def test_every_measure(suite_file: Path, tmp_path: Path) -> None:
    (comparison,) = compare(*made_up(suite_file, tmp_path, CURVES))
    assert comparison.target == pytest.approx(0.55)  # the median of what AdamW reached
    lnb, adamw = comparison.rows
    assert (lnb.lr, lnb.failed, lnb.rate_at_edge) == (0.01, 0, True)
    assert (adamw.lr, adamw.failed) == (0.003, 1)
    assert lnb.seconds_to_target == estimate([20, 20])
    assert lnb.steps_to_target == estimate([10, 10])
    assert lnb.epochs_to_target == estimate([0.5, 0.5])
    assert adamw.seconds_to_target == estimate([20, math.inf])
    assert lnb.at_equal_time == estimate([0.7, 0.8])  # AdamW ends after 20 s, LNB's first evaluation
    assert lnb.final == estimate([0.9, 0.9])
    assert lnb.milliseconds == estimate([2000, 2000])
    assert lnb.rate_width == pytest.approx(3)  # 0.89 is within 2 % of 0.9
    assert adamw.rate_width == 1
    assert comparison.tuning["adamw"][0] == (0.003, 0.6)
    assert math.isnan(comparison.tuning["adamw"][1][1])
    assert (lnb.peak_bytes, adamw.peak_bytes) == (3_000_000, 2_000_000)
    cells = table(comparison)[1]
    assert cells[8] == "2.0"
    assert cells[2].startswith("never")
    assert [line[4] for line in table(comparison)] == ["0.5", "never (1 to never)"]
    assert cells[-1].endswith("1 without result")


def verdict(suite_file: Path, tmp_path: Path, lnb: list[list[float]], adamw: list[list[float]]) -> tuple[str, str]:
    curves: Curves = {}
    for label, rates, runs in (("lnb", (0.01, 0.03), lnb), ("adamw", (0.003, 0.01), adamw)):
        curves |= {(label, rates[0], seed): values for seed, values in enumerate(runs)}
        curves[label, rates[1], 0] = None
    (comparison,) = compare(*made_up(suite_file, tmp_path, curves))
    (duel,) = duels(comparison)
    return duel.verdict, duel.sentence


def test_verdicts(suite_file: Path, tmp_path: Path) -> None:
    win = verdict(suite_file, tmp_path / "a", [[0.1, 0.9, 0.9]] * 2, [[0.1, 0.2, 0.3, 0.9]] * 2)
    assert win[0] == WIN
    assert (
        "0.67 times as long to the target (accuracy 90.00%): 0.33 times the steps, each of which takes 2.00" in win[1]
    )
    loss = verdict(suite_file, tmp_path / "b", [[0.1, 0.2, 0.3]] * 2, [[0.1, 0.2, 0.9]] * 2)
    assert (loss[0], "(accuracy 90.00%) and ended at 30.00%, adamw reached it in 20 s" in loss[1]) == (LOSS, True)
    tie = verdict(suite_file, tmp_path / "d", [[0.1, 0.9], [0.1, 0.2, 0.9]], [[0.1, 0.2, 0.3, 0.9]] * 2)
    assert (tie[0], "not clear" in tie[1]) == (TIE, True)


def test_overview(suite_file: Path, tmp_path: Path) -> None:
    comparisons = compare(*made_up(suite_file, tmp_path, CURVES))
    # AdamW's median over seeds of the time to 0.55 is infinite, LNB's 20 s; at AdamW's 20 s LNB is at 0.75
    assert overview(comparisons) == [("digits", "lnb, 20 s", "lnb, 75.00%", "lnb, 90.00%", "1, 1, 1 of 2")]
    assert summary(comparisons) == "1 comparisons by time to target: 0 wins, 1 without a clear difference, 0 losses."
    others: Curves = {("lnb", 0.01, 0): [0.1, 0.2], ("lnb", 0.03, 0): None, ("lnb", 0.01, 1): [0.1, 0.3]}
    behind = compare(*made_up(suite_file, tmp_path / "b", {**CURVES, **others}))
    assert overview(behind) == [("digits", "none", "adamw, 55.00%", "adamw, 55.00%", "none, 2, 2 of 2")]


def test_a_target_met_only_with_the_last_step_is_said(suite_file: Path, tmp_path: Path) -> None:
    suite_file.write_text(suite_file.read_text().replace("steps = 24", "steps = 20"))
    (comparison,) = compare(*made_up(suite_file, tmp_path, {**CURVES, ("lnb", 0.01, 0): [0.1, 0.2, 0.9],
                                                            ("lnb", 0.01, 1): [0.1, 0.2, 0.9]}))  # fmt: skip
    assert "; lnb got there with the last step of its schedule;" in duels(comparison)[0].sentence
    shown = family(suite_file, tmp_path / "f", "steps_to_target", [CURVES, {**CURVES, ("lnb", 0.01, 0): [0.1, 0.2, 0.9],
                                                                          ("lnb", 0.01, 1): [0.1, 0.2, 0.9]}])  # fmt: skip
    assert family_sentences(shown)[0].endswith("; only with the last step of its schedule on digits-0, digits-1.")


def test_the_shortest_schedule(suite_file: Path, tmp_path: Path) -> None:
    """At 10 steps LNB's best rate is another one, with which one seed of two is at the target; AdamW never is."""
    suite_file.write_text(
        suite_file.read_text()
        .replace("steps = 24", "steps = 20\ntarget = 0.85\nshorter = [5, 10]")
        .replace(
            '["digits", "matrix"]\nmeasure = "steps_to_target"', '["digits", "matrix"]\nmeasure = "shortest_schedule"'
        )
    )
    suite, store = made_up(suite_file, tmp_path, CURVES)
    with pytest.raises(TrainingError, match="no task of the suite"):  # the shorter ones are missing
        compare(suite, store)
    lnb_, adamw = suite.optimizers
    five, ten, _ = suite.tasks[0].lengths
    shorter: dict[tuple[str, float, int], list[float]] = {
        ("lnb", 0.01, 0): [0.1, 0.5], ("lnb", 0.03, 0): [0.1, 0.9], ("lnb", 0.03, 1): [0.1, 0.8],
        ("adamw", 0.003, 0): [0.1, 0.6], ("adamw", 0.01, 0): [0.1, 0.5], ("adamw", 0.003, 1): [0.1, 0.6],
    }  # fmt: skip
    for task, scale in ((five, 0.9), (ten, 1.0)):
        for (label, lr, seed), values in shorter.items():
            cell = Cell(task, lnb_ if label == "lnb" else adamw, lr, seed, suite.schedule)
            store.save(cell, outcome(cell, [scale * value for value in values], 1.0))
    (comparison,) = compare(suite, store)
    assert [row.shortest_schedule for row in comparison.rows] == [estimate([10, 20]), estimate([math.inf] * 2)]
    assert comparison.rows[0].lr == 0.01  # the full length is as it would be alone
    again = dataclasses.replace(comparison, task=dataclasses.replace(suite.tasks[0], label="matrix"))
    (shown,) = families(suite, [comparison, again])
    assert family_note(shown) == (
        "Steps of the shortest schedule tried (5, 10 or 20) that meets the target, each optimizer at its tuned rate on each "
        "schedule."
    )
    noted = dataclasses.replace(suite, families=(dataclasses.replace(suite.families[0], note="Said."),))
    assert family_note(families(noted, [comparison, again])[0]) == f"{family_note(shown)} Said."
    assert family_sentences(shown) == ["lnb: 15 to 15 steps, a factor of 1.", "adamw: never reached the target."]


def test_controls_do_not_count(suite_file: Path, tmp_path: Path) -> None:
    suite, store = made_up(suite_file, tmp_path, CURVES)
    control = dataclasses.replace(suite, tasks=(dataclasses.replace(suite.tasks[0], control=True),))
    comparisons = [*compare(suite, store), *compare(control, store)]
    assert [len(duels(comparison)) for comparison in comparisons] == [1, 0]
    assert len(overview(comparisons)) == 1
    assert summary(comparisons).startswith("1 comparisons")


def test_another_metric_of_the_same_run(suite_file: Path, tmp_path: Path) -> None:
    suite, store = made_up(suite_file, tmp_path, CURVES)
    by_loss = dataclasses.replace(suite, tasks=(dataclasses.replace(suite.tasks[0], metric="loss"),))
    (comparison,) = compare(by_loss, store)
    assert (comparison.metric, comparison.higher_is_better) == ("loss", False)
    assert comparison.target == pytest.approx(0.45)
    wrong = dataclasses.replace(suite, tasks=(dataclasses.replace(suite.tasks[0], metric="iou"),))
    with pytest.raises(TrainingError, match=r"\[tasks.digits\]: metric='iou' must be one of accuracy, loss"):
        compare(wrong, store)


def family(suite_file: Path, tmp_path: Path, measure: str, curves: list[Curves]) -> Family:
    """The family of as many copies of the digits as there are ``curves``."""
    suite, _ = made_up(suite_file, tmp_path, {})
    found = []
    for number, given in enumerate(curves):
        task = dataclasses.replace(suite.tasks[0], label=f"digits-{number}", target=0.85)
        part, store = made_up(suite_file, tmp_path / str(number), given)
        found += compare(dataclasses.replace(part, tasks=(task,)), store)
    labels = tuple(comparison.task.label for comparison in found)
    (shown,) = families(dataclasses.replace(suite, families=(SuiteFamily("f", labels, measure),)), found)
    return shown


def test_families(suite_file: Path, tmp_path: Path) -> None:
    lower: Curves = {k: None if v is None else [x - 0.05 for x in v] for k, v in CURVES.items()}
    final = family(suite_file, tmp_path / "a", "final", [CURVES, lower])
    assert [final.spread(label) for label in ("lnb", "adamw")] == pytest.approx([0.05, 0.05])
    assert family_sentences(final)[0] == "lnb: between 85.00% and 90.00%, moves by 5.00 points."
    assert family_table(final)[0] == ("lnb", "90.00%", "85.00%", "5.00 points")
    assert family_headers(final) == ("optimizer", "digits-0", "digits-1", "moves by")
    later: Curves = {("lnb", 0.01, seed): [0.1, 0.2, 0.3, 0.95] for seed in (0, 1)}
    steps = family(suite_file, tmp_path / "b", "steps_to_target", [CURVES, {**CURVES, **later}])
    assert family_sentences(steps) == [
        "lnb: 20 to 30 steps, a factor of 1.5.",
        "adamw: never reached the target.",
    ]
    assert family_table(steps)[1][-1] == "never on some"
    worse: Curves = {**CURVES, **{("lnb", 0.01, seed): [0.1, 0.2, 0.3] for seed in (0, 1)}, ("lnb", 0.03, 0): None}
    missed = family(suite_file, tmp_path / "c", "steps_to_target", [CURVES, worse])
    assert family_sentences(missed)[0] == "lnb: reached the target except on digits-1."


def test_two_machines_side_by_side(suite_file: Path, tmp_path: Path) -> None:
    suite, store = made_up(suite_file, tmp_path, CURVES)
    assert caution(compare(suite, store)) == ""
    cell = suite.tuning_cells(suite.tasks[0])[0]
    kept = store.load(cell)
    assert kept is not None
    store.save(cell, dataclasses.replace(kept, environment={**kept.environment, "clock": "cpu"}))
    assert caution(compare(suite, store)).startswith("Runs of 2 machines or settings stand side by side")
    assert any(", processor time; torch 2" in machine for machine in machines(compare(suite, store)))


def test_unfinished_tasks_are_left_out(suite_file: Path, tmp_path: Path) -> None:
    suite, store = made_up(suite_file, tmp_path, {k: v for k, v in CURVES.items() if k != ("adamw", 0.01, 0)})
    with pytest.raises(TrainingError, match="no task of the suite 'small' is finished"):
        compare(suite, store)


def test_bootstrap() -> None:
    values = [3.0, 1.0, 10.0]
    medians = sorted(statistics.median(s) for s in itertools.product(values, repeat=3))
    found = estimate(values)
    assert (found.median, found.low, found.high) == (3.0, medians[1], medians[25])
    assert estimate([2.0]) == estimate([2.0, 2.0])
    never = estimate([1.0, 2.0, math.inf])
    assert (never.median, never.high) == (2.0, math.inf)
    many = estimate([float(i) for i in range(101)])
    assert many.median == 50
    # the median of n uniform values has the standard deviation 1 / (2 sqrt n) of the range; 1.645 of them on each side
    assert many.high - 50 == pytest.approx(1.645 * 101 / (2 * math.sqrt(101)), rel=0.15)
