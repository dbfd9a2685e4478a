"""Counts what ran of each suite of others; with ``LNB_PEERS_TABLE`` in the environment the table goes to that file."""

from __future__ import annotations

import importlib.metadata
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from peers.left_out import LEFT_OUT

_SUITES = {
    "test_torch_optimizer": ("torch.optim", "torch"),
    "test_torch_state_dict": ("torch.distributed.checkpoint", "torch"),
    "test_accelerate_scripts": ("accelerate", "accelerate"),
    "test_lightning_boring": ("Lightning", "lightning"),
}
_counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    suite = _SUITES.get(Path(report.location[0]).stem)
    if suite is None or (report.when != "call" and report.outcome == "passed"):
        return
    checks = dict(report.user_properties).get("checks", 1)
    control = suite[0] == "torch.optim" and "OfParameters" not in report.nodeid
    _counts["control" if control else suite[0]][report.outcome] += int(str(checks))


def pytest_sessionfinish(session: Any) -> None:
    path = os.environ.get("LNB_PEERS_TABLE")
    if path:
        Path(path).write_text(_table())


def _table() -> str:
    lines = [
        "# Suites of others, with LNB",
        "",
        "Written by `make peers`. PyTorch's optimizer tests are not in its wheel: `tests/peers/test_torch_optimizer.py` writes",
        "anew what they check, for an `OptimizerInfo` of LNB, and as a control for those of AdamW and SGD. For checkpoints it is",
        "PyTorch's own comparisons that run, of accelerate its own scripts, of Lightning its own test models.",
        "",
        "| suite | version | ran | passed | failed | skipped |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for suite, package in _SUITES.values():
        found = _counts[suite]
        ran = found["passed"] + found["failed"]
        version = importlib.metadata.version(package).partition("+")[0] if ran else "not installed"
        lines.append(f"| {suite} | {version} | {ran} | {found['passed']} | {found['failed']} | {found['skipped']} |")
    control = _counts["control"]
    lines += ["", f"Of the control, {control['passed']} checks passed and {control['failed']} failed."]
    lines += ["", "Left out:", "", "| suite | what | why |", "| --- | --- | --- |"]
    lines += [f"| {suite} | {what} | {why} |" for suite, reasons in LEFT_OUT.items() for what, why in reasons.items()]
    return "\n".join(lines) + "\n"
