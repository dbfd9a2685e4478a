"""``lnb plan``: coverage, plan and predicted times of a user's model, and errors that name what is wrong, and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lnb
from lnb.cli.app import app

MODULE = """
import torch
from torch import nn

def convolution():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 10))

def one_of_its_inputs():
    return torch.randn(6, 3, 8, 8)

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, tokens, scale=1.0):
        return {"logits": [scale * self.head(self.embedding(tokens))], "tokens": tokens}

class Models:
    deep = Tokens

def named():
    return {"tokens": torch.zeros(2, 5, dtype=torch.int64), "scale": 2.0}

def pair():
    return torch.zeros(2, 5, dtype=torch.int64), 2.0

made = nn.Linear(3, 2)
number = 3

def half(): return nn.Linear(4, 3).bfloat16()
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
def frozen(): return nn.Linear(3, 2).requires_grad_(False)
def norm(): return nn.LayerNorm(4)
def wide(width): return nn.Linear(width, width)
def three(): return 3

class Bypassed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return x @ self.layer.weight

def fails():
    raise RuntimeError("no weights here")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a package of models, which is forgotten afterwards."""
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").write_text("")
    (tmp_path / "zoo" / "models.py").write_text(MODULE)
    (tmp_path / "zoo" / "needs.py").write_text("import a_package_that_nobody_has")
    (tmp_path / "zoo" / "syntax.py").write_text("def build(:")
    (tmp_path / "zoo" / "leaves.py").write_text("import sys\nsys.exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "zoo"]:
        del sys.modules[name]


def invoke(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def samples(output: str) -> dict[str, str]:
    """What the column ``samples`` of the plan says for each layer."""
    lines = output.split("\n\n")[1].splitlines()
    place = lines[0].index("samples")
    return {
        line.split()[0]: line[place:].split()[0] for line in lines[1:] if len(line) > place and line[place - 1] == " "
    }


def test_without_an_input_it_prints_what_the_optimizer_says() -> None:
    output = invoke("zoo.models:convolution")
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 10))
    optimizer = lnb.LNB(model)
    assert output.startswith(f"{optimizer.coverage()}\n\n{optimizer.plan()}\n")
    assert "give --input, such as --input 8,3,32,32" in output


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        ("convolution", ("--input", "6,3,8,8"), {"0": "384", "2": "6"}),
        ("convolution", ("--input", "zoo.models:one_of_its_inputs"), {"0": "384", "2": "6"}),
        ("Tokens", ("--input", "2,5:int64"), {"head": "10"}),
        ("Tokens", ("--input", "2,5:int64", "--input", "1"), {"head": "10"}),
        ("Models.deep", ("--input", "zoo.models:named"), {"head": "10"}),
        ("Tokens", ("--input", "zoo.models:pair"), {"head": "10"}),
        ("made", ("--input", "7,3"), {"Linear": "7"}),
        ("lazy", ("--input", "4,3,2"), {"1": "4"}),
        ("half", ("--input", "5,4"), {"Linear": "5"}),
    ],
)
def test_an_input_gives_samples_and_times(model: str, arguments: tuple[str, ...], expected: dict[str, str]) -> None:
    output = invoke(f"zoo.models:{model}", *arguments)
    found = samples(output)
    assert {layer: found[layer] for layer in expected} == expected
    assert "predicted overhead of statistics" in output
    assert "--input" not in output


def test_preset_and_settings_reach_the_optimizer() -> None:
    assert "2 CG iterations" in invoke("zoo.models:convolution", "--preset", "paper")
    output = invoke("zoo.models:convolution", "--set", "refresh_every=7", "--set", "moment_dtype=bfloat16")
    assert "every 7 steps" in output


def test_a_budget_that_cannot_be_met_is_told() -> None:
    output = invoke("zoo.models:convolution", "--input", "2,3,8,8", "--set", "max_overhead=0.001")
    assert "warning: max_overhead=0.001 cannot be met" in output
    assert "optimizer.py" not in output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("zoo.models",), 2, "MODEL 'zoo.models' must be MODULE:FUNCTION, such as"),
        (("zoo/models.py:convolution",), 2, "'zoo/models.py' is a file; give the name under which Python imports it"),
        (("zoo.modules:convolution",), 2, "there is no module 'zoo.modules' in"),
        (("nowhere.models:build",), 2, "run the command in the folder that holds it, or name that folder in PYTHONPATH"),
        (("zoo.models:convolutions",), 2, "zoo.models has no 'convolutions'; did you mean 'convolution'?"),
        (("zoo.models:xyz",), 2, "zoo.models has no 'xyz'; give the name of a function or a class in it"),
        (("zoo.models:number",), 2, "MODEL 'zoo.models:number' is of type int; it must be a function or a class"),
        (("zoo.models:wide",), 2, "cannot be called without arguments (missing a required argument: 'width')"),
        (("zoo.models:three",), 2, "returned an object of type int; it must return a torch.nn.Module"),
        (("zoo.models:fails",), 1, "MODEL 'zoo.models:fails' raised RuntimeError: no weights here"),
        (("zoo.needs:build",), 1, "importing zoo.needs raised ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        (("zoo.syntax:build",), 1, "importing zoo.syntax raised SyntaxError"),
        (("zoo.leaves:build",), 1, "importing zoo.leaves raised SystemExit: 3"),
        (("zoo.models:norm",), 2, "model=LayerNorm has no layer that LNB can claim"),
        (("zoo.models:made", "--preset", "quick"), 2, "preset='quick' must be one of"),
        (("zoo.models:made", "--set", "rigde=1"), 2, "no setting 'rigde'"),
        (("zoo.models:made", "--set", "ridge"), 2, "--set 'ridge' must be NAME=VALUE"),
        (("zoo.models:made", "--set", "refresh_every=0"), 2, "refresh_every=0 must be at least 1"),
        (("zoo.models:made", "--input", "4,x"), 2, "--input '4,x' must be sizes of at least 1"),
        (("zoo.models:made", "--input", "0,3"), 2, "--input '0,3' must be sizes of at least 1"),
        (("zoo.models:made", "--input", "4,3:int65"), 2, "'int65' must be a dtype of torch"),
        (("zoo.models:made", "--input", "4,3:nn"), 2, "'nn' must be a dtype of torch"),
        (("zoo.models:made", "--input", "zoo.models:pairs"), 2, "--input 'zoo.models:pairs': zoo.models has no 'pairs'"),
        (("zoo.models:made", "--input", "zoo.models:pair", "--input", "4,3"), 2, "--input zoo.models:pair, 4,3: give shapes"),
        (("zoo.models:made", "--input", "4,5"), 1, "with --input 4,5: its forward pass raised ValueError: linear: x has"),
        (("zoo.models:Bypassed", "--input", "4,3"), 1, "the optimizer's step raised RuntimeError: step(): layer"),
        (("zoo.models:frozen", "--input", "4,3"), 1, "without a floating-point tensor that depends on a parameter"),
        (("zoo.models:made", "--input", "99999999,99999999"), 1, "--input '99999999,99999999' raised RuntimeError"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_and_the_remedy(arguments: tuple[str, ...], code: int, message: str) -> None:
    output = " ".join(invoke(*arguments, code=code).split())
    assert message in output
    assert "Traceback" not in output
    assert "state of all layers" not in output


def test_an_error_tells_the_line_of_the_users_code(folder: Path) -> None:
    line = 1 + MODULE.splitlines().index('    raise RuntimeError("no weights here")')
    output = invoke("zoo.models:fails", code=1).replace("\n", "")
    assert f"({folder / 'zoo' / 'models.py'}, line {line})" in output


def test_a_second_run_finds_the_rates_of_the_first() -> None:
    threads = torch.get_num_threads()
    invoke("zoo.models:made", "--input", "7,3")
    assert "measured earlier" in invoke("zoo.models:made", "--input", "7,3")
    assert torch.get_num_threads() == threads
