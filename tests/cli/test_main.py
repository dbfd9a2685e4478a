"""``python -m lnb`` without what it needs, its lightness, and the demo with shortened scenes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from lnb.cli.app import app
from lnb.demo import comparison


@pytest.mark.parametrize(
    ("package", "extra", "arguments"), [("typer", "cli", []), ("rich", "watch", ["watch", "runs"])]
)
def test_a_missing_extra_is_explained(package: str, extra: str, arguments: list[str]) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import runpy; runpy.run_module('lnb', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"needs the package {package!r}" in result.stderr
    assert f"-m pip install 'lnb-kernels[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "lnb", "--version"], capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("lnb ")


def test_kernels_prints_the_report() -> None:
    result = CliRunner().invoke(app, ["kernels"])
    assert result.exit_code == 0, result.output
    assert "second_moment" in result.output


def test_the_library_imports_neither_its_command_line_nor_the_harness() -> None:
    code = "import sys, lnb; print(*sorted({name.partition('.')[0] for name in sys.modules}), *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert {"lnb", "lnb_kernels", "lnb.optimizer"} <= loaded
    assert not loaded & {"typer", "rich", "matplotlib", "sklearn", "lnb_bench", "lnb.cli", "lnb.demo"}


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_the_demo_explains_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "lnb.demo.figure", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 1
    assert f"the demo needs the package '{package}" in result.output
    assert "-m pip install 'lnb-kernels[cli]'" in " ".join(result.output.split())


def final(scene: comparison.Scene, optimizer: str, steps: int) -> float:
    """The figure of merit at the end of a shortened run."""
    scene = dataclasses.replace(scene, steps=steps, evaluate_every=steps)
    *_, (_, curve) = comparison.run(scene, scene.problem(), optimizer, seed=0)
    assert curve.steps == [0, steps]
    return curve.values[-1]


def test_the_demo_trains() -> None:
    digits, inverted, matrix = comparison.SCENES
    assert final(digits, "lnb", 60) > 0.6
    assert final(inverted, "lnb-paper", 60) > 0.8
    assert final(inverted, "adamw", 60) > 0.8
    assert final(matrix, "lnb", 40) < 1e-6 < 1e-2 < final(matrix, "adamw", 40)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = tuple(dataclasses.replace(scene, steps=20) for scene in comparison.SCENES)
    monkeypatch.setattr(comparison, "SCENES", scenes)
    out = tmp_path / "curves.png"
    result = CliRunner().invoke(app, ["demo", "--out", str(out)], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    for word in ("digits, inverted", "AdamW", "LNB", "matrix", "steps", "never", "learning rate"):
        assert word in result.output
    with Image.open(out) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100


def test_demo_refuses_a_place_it_cannot_write_before_it_trains(tmp_path: Path) -> None:
    for out, message in ((tmp_path / "no" / "a.png", "does not exist"), (tmp_path / "a.doc", "not a picture format")):
        result = CliRunner().invoke(app, ["demo", "--out", str(out)])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())


def test_steps_to_target() -> None:
    curve = comparison.Curve("LNB", "accuracy", True, [0, 5, 10], [0.1, 0.9, 0.8])
    assert curve.steps_to(0.85) == 5
    assert curve.steps_to(0.95) is None
    error = comparison.Curve("LNB", "relative_error", False, [0, 5, 10], [1.0, 0.2, 0.3])
    assert error.steps_to(0.25) == 5
    assert error.steps_to(0.1) is None
