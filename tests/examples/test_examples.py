"""The examples run as they stand, and train."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, GALLERY = ROOT / "examples", ROOT / "docs" / "gallery.md"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?%?|\(rates [^)]*\)")  # where a plan's rates are from differs, too
# Steps of a short run, and what it must reach: a share of right answers, which guessing gives one tenth, one eighth, and a
# fortieth of, the average of two models half of, and adapters of the usual start a quarter of; a share of alarms; or a share of
# the units found that never open.
RUNS = {
    "own_loop": (60, 0.8),
    "mixed_precision": (40, 0.9),
    "small_unet": (40, 0.6),
    "watch_training": (20, 0.99),
    "quantise_without_data": (80, 0.85),
    "merge_models": (80, 0.75),
    "unusual_inputs": (60, 0.8),
    "lora_start": (100, 0.32),
}


def main_of(name: str) -> Callable[[int], float]:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[int], float] = module.main
    return main


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_the_example_trains(name: str) -> None:
    steps, wanted = RUNS[name]
    printed = io.StringIO()
    with redirect_stdout(printed):
        reached = main_of(name)(steps)
    assert reached > wanted, printed.getvalue()
    assert sentences(printed.getvalue()) <= sentences(shown(name)), "run: python docs/tools/gallery.py"


def shown(name: str) -> str:
    """What the gallery says that an example prints."""
    return GALLERY.read_text().split(f"<!-- output of {name} -->")[1].split("<!-- end of output -->")[0]


def sentences(text: str) -> set[str]:
    """The lines of a text without their numbers and columns."""
    return {" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines() if line.strip()}
