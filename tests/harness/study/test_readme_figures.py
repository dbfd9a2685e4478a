"""README's figures are those of the committed results, to the digits that it shows and a little more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lnb_bench.study import load_suite

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 0.05  # of the figure, besides half of its last digit
COLUMNS = {
    "default": "fast",
    '`preset="paper"`': "paper",
    "the paper's, by autodiff": "paper, autodiff",
    "Muon": "Muon",
    "LNB": "lnb",
}
ROWS = {
    "2 transformer blocks": "transformer",
    "UNet, 16": "unet",
    "MLP 784-800-10": "mlp",
    "inverted MNIST": "mnist-inverted",
    "MNIST, MLP": "mnist",
    "CamVid": "camvid",
    "CIFAR-10": "cifar10",
    "Shakespeare": "shakespeare",
}


def table_of(title: str) -> dict[str, dict[str, str]]:
    """The table of README whose first header begins with ``title``: by row, by column, the text of a cell."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title}"))
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    end = next(i for i, line in enumerate(lines[start:]) if not line.startswith("|"))
    headers, _, *rows = split[:end]
    return {row[0]: dict(zip(headers[1:], row[1:], strict=True)) for row in rows}


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())["results"]


def require_near(shown: str, measured: float) -> None:
    digits = len(shown.partition(".")[2])
    assert float(shown) == pytest.approx(measured, rel=TOLERANCE, abs=0.5 * 10**-digits), shown


@pytest.mark.parametrize(
    ("title", "kept", "column"),
    [("a training step", "step_overhead", None), ("time to the value", "time_to_target", "lnb")],
)
def test_tables(title: str, kept: str, column: str | None) -> None:
    measured = results(kept)
    shown = table_of(title)
    assert len(shown) == (3 if column is None else 5)
    for row, cells in shown.items():
        entry = measured[next(key for label, key in ROWS.items() if row.startswith(label))]
        entry = entry.get("optimizers", entry)
        for header, text in cells.items():
            by_name = {name.lower(): value for name, value in entry.items()}
            require_near(text, by_name[COLUMNS[header].lower()]["ratio"])


def test_the_study_is_as_large_as_it_says() -> None:
    suite = load_suite(ROOT / "bench" / "suites" / "study.toml")
    controls = sum(task.control for task in suite.tasks)
    words = {5: "five", 7: "seven", 17: "seventeen"}
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = re.search(r"study of (\w+) tasks \((\w+) of them controls with other inputs\) and (\w+) optimizers", text)
    assert found is not None
    assert found.groups() == tuple(words[n] for n in (len(suite.tasks), controls, len(suite.optimizers)))
