"""The code that the Triton compiler makes of the shipped kernels: no spills, tensor cores used, registers in budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.mark.parametrize("target", TARGETS)
def test_generated_code_keeps_its_budgets(target: str) -> None:
    """A test for each architecture, which pytest-xdist can run beside one another: compilation is all that they do."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    workers = max(1, (os.cpu_count() or 1) // beside)
    command = [sys.executable, str(BENCH / "codegen.py"), "--check", "--targets", target, "--workers", str(workers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_every_architecture_is_checked() -> None:
    table = json.loads((BENCH / "codegen.json").read_text())
    assert {key.rsplit("/", 1)[1] for key in table["rows"]} == set(TARGETS)
