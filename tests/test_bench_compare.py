"""The comparison of two benchmark files: what it calls a regression, and what it calls noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "compare.py"


def write(path: Path, times: dict[str, tuple[float, float]], cpu: str = "one") -> Path:
    """``{name: (median, interquartile range)}`` as pytest-benchmark writes it."""
    benchmarks = [
        {"fullname": name, "stats": {"median": median, "iqr": iqr, "rounds": 25}}
        for name, (median, iqr) in times.items()
    ]
    path.write_text(json.dumps({"machine_info": {"cpu": {"brand_raw": cpu}}, "benchmarks": benchmarks}))
    return path


def compare(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("new", "code"),
    [
        ((1.00, 0.01), 0),  # the same
        ((0.50, 0.01), 0),  # faster
        ((1.08, 0.01), 0),  # within the tolerance
        ((1.30, 0.01), 1),  # slower, without doubt
        ((1.30, 0.90), 0),  # slower, but less than the rounds scatter
        ((1.30, 0.50), 1),  # the scatter of 25 rounds is averaged
    ],
)
def test_a_regression_is_growth_beyond_tolerance_and_noise(tmp_path: Path, new: tuple[float, float], code: int) -> None:
    base = write(tmp_path / "base.json", {"op": (1.0, 0.01), "other": (2.0, 0.1)})
    result, output = compare(base, write(tmp_path / "new.json", {"op": new, "other": (2.0, 0.1)}))
    assert result == code, output
    assert ("SLOWER" in output) == (code == 1)


def test_limits_are_options(tmp_path: Path) -> None:
    base, new = write(tmp_path / "a", {"op": (1.0, 0.01)}), write(tmp_path / "b", {"op": (1.3, 0.01)})
    assert compare(base, new, "--tolerance", "0.5")[0] == 0
    assert compare(base, new, "--sigmas", "1000")[0] == 0


def test_a_lost_benchmark_fails_and_a_new_one_does_not(tmp_path: Path) -> None:
    both = write(tmp_path / "a", {"op": (1.0, 0.1), "other": (1.0, 0.1)})
    one = write(tmp_path / "b", {"op": (1.0, 0.1)})
    code, output = compare(both, one)
    assert code == 1
    assert "LOST    other" in output
    assert compare(one, both)[0] == 0


def test_another_machine_is_noted(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", {"op": (1.0, 0.1)}), write(tmp_path / "b", {"op": (1.0, 0.1)}, cpu="two")
    assert "different machines, one and two" in compare(a, b)[1]
    assert "different machines" not in compare(a, a)[1]


def test_files_that_do_not_compare(tmp_path: Path) -> None:
    good = write(tmp_path / "good", {"op": (1.0, 0.1)})
    other = write(tmp_path / "other", {"another": (1.0, 0.1)})
    empty = write(tmp_path / "empty", {})
    (tmp_path / "text").write_text("not json")
    (tmp_path / "list").write_text("[]")
    for bad in (tmp_path / "absent", tmp_path / "text", tmp_path / "list"):
        code, output = compare(good, bad)
        assert code == 2
        assert str(bad) in output
    assert compare(empty, other)[0] == 2
