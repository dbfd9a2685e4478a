"""The step profile: spans counted once each, and memory that shows what keeping inputs costs."""

from __future__ import annotations

import pytest
import step_profile
from torch import nn


class Event:
    def __init__(self, name: str, start: int, end: int) -> None:
        self._fields = name, start * 10**7, (end - start) * 10**7

    def name(self) -> str:
        return self._fields[0]

    def start_ns(self) -> int:
        return self._fields[1]

    def duration_ns(self) -> int:
        return self._fields[2]


def test_spans_are_split_by_hand() -> None:
    events = [
        Event("part: forward", 0, 10),
        Event("part: backward", 10, 40),
        Event("aten::mm", 12, 20),
        Event("part: update", 40, 60),
        Event("part: solve", 42, 52),
        Event("aten::bmm", 43, 50),
    ]
    assert step_profile.split(events) == pytest.approx({"forward": 10, "backward": 30, "solve": 10, "update": 10})


def test_parts_of_a_real_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, batch = step_profile.step_overhead.mlp()

    def small() -> tuple[nn.Module, object]:
        """The MLP, but narrow."""
        return nn.Sequential(nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10)), batch

    monkeypatch.setitem(step_profile.step_overhead.MODELS, "mlp", small)
    rows = step_profile.show_parts(["mlp"])["mlp"]
    assert all(rows["paper"][name] > 0 for name in step_profile.PARTS)
    assert rows["AdamW fused"]["statistics"] == rows["AdamW fused"]["solve"] == 0


def test_kept_inputs_cost_memory_that_grows_with_the_batch() -> None:
    rows = step_profile.show_memory([64, 2048], width=32, depth=3)
    peaks = {(row["optimizer"], row["checkpointed"]): row["peaks"] for row in rows}
    growth = {key: sizes[2048] - sizes[64] for key, sizes in peaks.items()}
    activation = 4 * 32 * (2048 - 64)
    assert growth["paper, probe", False] < growth["AdamW fused", False] + activation
    assert growth["AdamW fused", True] < growth["AdamW fused", False] - activation
    assert growth["paper, kept inputs", True] > growth["paper, probe", True] + activation
