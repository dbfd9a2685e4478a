"""The suite file: what follows from it, and what it refuses by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lnb_bench.study import SuiteError, load_suite
from lnb_bench.study.search import Knobs

SUITES = Path(__file__).resolve().parents[3] / "bench" / "suites"


def test_cells_of_a_suite(suite_file: Path) -> None:
    suite = load_suite(suite_file)
    digits, matrix = suite.tasks
    assert [(c.optimizer.label, c.lr, c.seed) for c in suite.tuning_cells(digits)] == [
        ("lnb", 0.01, 0), ("adamw", 0.003, 0), ("lnb", 0.03, 0), ("adamw", 0.01, 0),
    ]  # fmt: skip
    assert [c.lr for c in suite.tuning_cells(matrix) if c.optimizer.label == "adamw"] == [0.03, 0.1, 0.3]
    assert [(c.optimizer.label, c.lr, c.seed) for c in suite.repeat_cells(digits, {"adamw": (0.01, Knobs())})] == [
        ("adamw", 0.01, 1)
    ]


def test_weight_decay_of_a_task(suite_file: Path) -> None:
    suite_file.write_text(
        suite_file.read_text()
        .replace("settings = { fused = true }", "settings = { fused = true }\nweight_decay = 0.1")
        .replace("steps = 30", "steps = 30\nweight_decay = 0")
    )
    suite = load_suite(suite_file)
    decays = {(c.task.label, c.optimizer.label): c.description()["weight_decay"] for t in suite.tasks
              for c in suite.tuning_cells(t)}  # fmt: skip
    assert decays == {
        ("digits", "lnb"): None, ("digits", "adamw"): 0.1, ("matrix", "lnb"): 0, ("matrix", "adamw"): 0,
    }  # fmt: skip


def test_a_mode_changes_the_suite(suite_file: Path) -> None:
    quick = load_suite(suite_file, "quick")
    assert (quick.seeds, [t.label for t in quick.tasks], quick.tasks[0].steps) == ((0,), ["digits"], 12)
    assert [len(o.rates) for o in quick.optimizers] == [1, 1]
    with pytest.raises(SuiteError, match=r"has no table \[full\]"):
        load_suite(suite_file, "full")


def test_a_mode_shortens_dear_tasks() -> None:
    suite = load_suite(SUITES / "protocol.toml", "short")
    whole = {task.label: task for task in load_suite(SUITES / "protocol.toml").tasks}
    for task in suite.tasks:
        dear = task.label not in ("diabetes", "diamonds", "digits")
        part, trials, judged = suite.at(task), 8 if dear else 16, 3 if dear else 5
        assert task.steps == (whole[task.label].steps // 2 if dear else whole[task.label].steps)
        for optimizer in suite.contestants(task):
            assert len(part.trials_of(task, optimizer)) == trials
        assert part.judged_seeds == tuple(range(1, judged + 1))
        assert len(part.repeat_cells(task, {})) == judged * len(suite.contestants(task))


def test_lengths(suite_file: Path) -> None:
    suite_file.write_text(suite_file.read_text().replace("steps = 24", "steps = 24\nshorter = [12, 2]"))
    (task,) = load_suite(suite_file).only(["digits"], None).tasks
    shown = [(length.label, length.steps, length.evaluations, length.lengths[:-1]) for length in task.lengths[:-1]]
    assert shown == [("digits@2", 2, 2, ()), ("digits@12", 12, 4, ())]
    assert task.lengths[-1] is task
    assert [length.steps for length in load_suite(suite_file, "quick").tasks[0].lengths] == [1, 6, 12]


def test_names_tell_runs_apart_and_nothing_else(suite_file: Path) -> None:
    cell = load_suite(suite_file).tuning_cells(load_suite(suite_file).tasks[0])[0]
    longer = dataclasses.replace(cell, task=dataclasses.replace(cell.task, steps=25))
    judged = dataclasses.replace(cell, task=dataclasses.replace(cell.task, label="again", metric="loss"))
    assert cell.name != longer.name
    assert cell.name == judged.name


def test_only_a_part(suite_file: Path) -> None:
    suite = load_suite(suite_file).only(["matrix"], ["adamw"])
    assert ([t.label for t in suite.tasks], [o.label for o in suite.optimizers]) == (["matrix"], ["adamw"])
    with pytest.raises(SuiteError, match="'mnits' must be one of digits, matrix"):
        load_suite(suite_file).only(["mnits"], None)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("study", None), ("study", "quick"), ("study", "full"), ("peers", None),
     *((name, mode) for name in ("protocol", "ablations") for mode in (None, "short", "quick"))],
)  # fmt: skip
def test_the_shipped_suites_are_well_formed(name: str, mode: str | None) -> None:
    suite = load_suite(SUITES / f"{name}.toml", mode)
    assert all(suite.baseline in [o.label for o in suite.contestants(task)] for task in suite.tasks)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[optimizers.lnb]", "[optimizers.soup]", r"\[optimizers.soup\]: optimizer='soup' must be one of lnb"),
        ('task = "matrix-factorization"', 'task = "imagenet"', r"\[tasks.matrix\]: task='imagenet' must be one of"),
        ("steps = 24", "steps = 0", r"\[tasks.digits\]: steps=0 must be a whole number"),
        ("steps = 24", "stesp = 24", r"\[tasks.digits\]: unknown entry 'stesp'"),
        (
            "steps = 24",
            "steps = 24\nweight_decay = -1",
            r"\[tasks.digits\]: weight_decay=-1 must be a finite number of at",
        ),
        ("steps = 24", "steps = 24\nshorter = [6, 24]", r"shorter=\[6, 24\] must be a list of different whole numbers"),
        ("steps = 24", "steps = 24\ncontrol = 1", r"\[tasks.digits\]: control=1 must be true or false"),
        ("steps = 24", "", r"\[tasks.digits\]: steps=None must be"),
        ("width = 16", "widht = 16", r"options: unknown entry 'widht'"),
        ("[0.01, 0.03]", "[0.01, -1]", r"\[optimizers.lnb\]: a rate=-1 must be a finite number above 0"),
        ("[0.01, 0.03]", "[]", r"\[optimizers.lnb\]: rates=\[\] must be a list"),
        ("seeds = [0, 1]", "seeds = [0, 0]", r"seeds=\[0, 0\] must be a list of different"),
        ('baseline = "adamw"', 'baseline = "adam"', "baseline: 'adam' must be one of lnb, adamw"),
        ("rates = { adamw =", "rates = { adma =", r"\[tasks.matrix\]: 'adma' must be one of"),
        ("target = 0.5", "target = nan", "target=nan must be a finite number"),
        ("seeds = [0, 1]", "seeds = [0, 1", "not a TOML file"),
        (
            'tasks = ["digits", "matrix"]',
            'tasks = ["digits"]',
            r"\[families.both\]: tasks=\['digits'\] must be a list of at",
        ),
        (
            'tasks = ["digits", "matrix"]',
            'tasks = ["digits", "vit"]',
            r"\[families.both\]: 'vit' must be one of digits",
        ),
        ('measure = "steps_to_target"', 'measure = "speed"', "measure='speed' must be one of final, steps_to_target"),
        ('baseline = "adamw"', "extensions = -1", "extensions=-1 must be a whole number of at least 0"),
        ('baseline = "adamw"', 'schedule = "linear"', "schedule='linear' must be one of constant, cosine"),
        ("steps = 0.5", "steps = -1", "steps=-1 must be a finite number above 0"),
        ("steps = 0.5", "dear = { tasks = 1 }", r"\[quick.dear\]: tasks=1 must be a list of labels"),
        ("steps = 0.5", 'dear = { tasks = ["matrix"] }', r"\[quick.dear\]: 'matrix' must be one of digits"),
        ("steps = 0.5", 'dear = { tasks = ["digits"], trials = 2 }', r"\[quick.dear\]: trials=2 has no meaning"),
        ("steps = 0.5", 'dear = { tasks = ["digits"], rates = 2 }', r"\[quick.dear\]: unknown entry 'rates'"),
    ],
)
def test_bad_suites(suite_file: Path, old: str, new: str, message: str) -> None:
    text = suite_file.read_text()
    assert old in text
    suite_file.write_text(text.replace(old, new))
    with pytest.raises(SuiteError, match=message) as raised:
        load_suite(suite_file, "quick" if old == "steps = 0.5" else None)
    assert str(raised.value).startswith(str(suite_file))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"none\.toml: cannot be read"):
        load_suite(tmp_path / "none.toml")
