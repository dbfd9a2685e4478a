"""The public MNIST setting of the paper's author, on the real data: slow, run with ``pytest -m slow``."""

from __future__ import annotations

from pathlib import Path

import pytest

from lnb_bench.training import LoopConfig, OptimizerConfig, TaskOptions, make_task
from lnb_bench.training.loop import Trainer


@pytest.mark.slow
@pytest.mark.parametrize("invert", [False, True])
def test_three_epochs_of_mnist(invert: bool, real_data: Path) -> None:
    """784-800-10, tanh, batch 1000, clipped to norm 1, ridge 1, constant lr 0.5: 96.5 % on normal and inverted images."""
    task = make_task("mnist", TaskOptions(data=real_data, invert=invert))
    optimizer = OptimizerConfig("lnb-paper", lr=0.5, settings={"ridge": 1.0})
    trainer = Trainer(task, optimizer, LoopConfig(steps=180, clip_norm=1.0))
    for _ in trainer.records():
        pass
    assert trainer.evaluate()["accuracy"] >= 0.965
