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
        Event("lnb_kernels::linear", 2, 4),  # the layer itself, not statistics
        Event("part: backward", 10, 40),
        Event("lnb_kernels::linear_backward", 12, 20),
        Event("lnb_kernels::second_moment", 13, 19),  # inside the one before
        Event("lnb_kernels::second_moment", 30, 33),
        Event("part: update", 40, 60),
        Event("part: solve", 42, 52),
        Event("lnb_kernels::pcg", 43, 50),
    ]
    assert step_profile.split(events) == pytest.approx(
        {"forward": 10, "backward": 19, "statistics": 11, "solve": 10, "update": 10}
    )


def test_parts_of_a_real_step() -> None:
    _, batch = step_profile.step_overhead.mlp()
    small = nn.Sequential(nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10))
    parts = step_profile.parts(small, batch, step_profile.OPTIMIZERS["paper"])
    assert all(parts[name] > 0 for name in step_profile.PARTS)
    plain = step_profile.parts(small, batch, step_profile.OPTIMIZERS["AdamW fused"])
    assert plain["statistics"] == plain["solve"] == 0


def test_kept_inputs_cost_memory_that_grows_with_the_batch() -> None:
    rows = step_profile.show_memory([64, 2048], width=32, depth=3)
    peaks = {(row["optimizer"], row["checkpointed"]): row["peaks"] for row in rows}
    growth = {key: sizes[2048] - sizes[64] for key, sizes in peaks.items()}
    activation = 4 * 32 * (2048 - 64)
    assert growth["paper, probe", False] < growth["AdamW fused", False] + activation
    assert growth["paper, kept inputs", False] > growth["paper, probe", False] + activation
    assert growth["AdamW fused", True] < growth["AdamW fused", False]
