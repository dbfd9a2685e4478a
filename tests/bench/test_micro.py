"""The microbenchmarks: every op has one, and each of their results is right. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import lnb_kernels as lk

MICRO = Path(__file__).resolve().parents[2] / "bench" / "micro"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, MICRO / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_op_is_measured() -> None:
    measured = {name.partition("-")[0] for name in load("test_ops").CASES}
    measured |= set(load("test_multi_tensor_ops").CASES) | set(load("test_fused_ops").CASES)
    routes = set(lk._backend.routes()) - {
        "linear_backward",
        "refresh_metrics",
    }  # measured as `linear`, and in whole steps
    assert routes <= measured, routes - measured
    public = {
        name for name in lk.__all__ if not name.startswith(("set_", "get_")) and name not in ("report", "multi_tensor")
    }
    assert public <= measured, public - measured


def test_every_case_is_right_by_every_backend() -> None:
    """Each benchmark compares its result with the plain one before it is timed; here it is called once."""
    files = [str(MICRO / f"{name}.py") for name in ("test_ops", "test_multi_tensor_ops", "test_fused_ops")]
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
