"""A bare copy of the project, as a user would have it, and the tools to build it offline from this environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["csrc", "lnb_kernels", "python"]
FILES = ["pyproject.toml", "setup.py", "MANIFEST.in", "CMakeLists.txt", "LICENSE", "README.md"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project's sources without anything that a build leaves behind."""
    copy = tmp_path / "project"
    copy.mkdir()
    leftovers = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=leftovers)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run this Python in an empty folder, so that only installed packages are found; the output is captured."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def python(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LNB_NATIVE", "LNB_WERROR")}
        environment["LNB_CUDA"] = "off"  # unless a test asks for it: nvcc takes most of a build's time
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=environment | dict(env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return python
