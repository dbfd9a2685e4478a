"""Layer figures reach a writer, and TensorBoard's own where it is installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tensorboard_example


class Memory:
    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> None:
        self.points.setdefault(tag, []).append((global_step, float(scalar_value)))


def test_every_layer_is_logged() -> None:
    memory = Memory()
    tensorboard_example.train(memory, steps=20, every=10)
    assert [step for step, _ in memory.points["loss"]] == [10, 20]
    assert memory.points["lnb/steps"] == [(10, 10.0), (20, 20.0)]
    for layer in ("layers.1", "layers.3"):
        for figure in ("gain", "step_norm", "refresh_age", "condition"):
            assert len(memory.points[f"lnb/layer/{layer}/{figure}"]) == 2


def test_with_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="NO TENSORBOARD: the example is tested with a writer of the test alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(tmp_path)) as writer:
            tensorboard_example.train(writer, steps=10, every=10)
        read = EventAccumulator(str(tmp_path))
        read.Reload()
    assert "lnb/layer/layers.1/condition" in read.Tags()["scalars"]
