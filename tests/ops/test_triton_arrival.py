"""Parts that the last program to arrive adds: the same bits in whatever order programs run, and counters that are zero again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton_support import DEVICE, triton_sanitizer

from lnb_kernels._triton import arrival
from lnb_kernels._triton.gram_launch import GramPlan, launch_gram
from lnb_kernels._triton.gram_tail import NO_TAIL, cut_tail
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.triton_depthwise import second_moment_depthwise
from lnb_kernels.conv2d.triton_patches import second_moment_by_patches
from lnb_kernels.conv2d.triton_shifts import second_moment_by_shifts
from lnb_kernels.second_moment import reference

interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU chooses its own order of programs")


def gram(plan: GramPlan, n: int, d: int) -> torch.Tensor:
    x = torch.linspace(-1, 1, n * d, device=DEVICE).view(1, n, d).sin()
    s = x.new_empty(1, d + 1, d + 1)
    launch_gram(x, s, plan=plan)
    return s


def image(*shape: int) -> torch.Tensor:
    return torch.linspace(-3, 3, torch.Size(shape).numel(), device=DEVICE).view(shape).cos()


SHARED_TAIL = cut_tail(3, 17, 20)
assert SHARED_TAIL is not None
CALLS: dict[str, Callable[[], torch.Tensor]] = {
    # 20 steps of 16 rows: 10 splits, so groups of 4, 4 and 2 parts; tiles of a tail are 6 or 7 parts
    "one tile": lambda: gram(GramPlan(16, 16, 16, 4, 2, 1, 1, 1, 10, 32, True, NO_TAIL, 10, 32), 320, 13),
    "splits": lambda: gram(GramPlan(16, 16, 16, 4, 2, 3, 2, 3, 10, 32, True, NO_TAIL, 5, 64), 320, 20),
    "tail": lambda: gram(GramPlan(16, 16, 16, 4, 2, 3, 2, 0, 1, 320, True, SHARED_TAIL, 5, 64), 320, 20),
    "patches": lambda: second_moment_by_patches(image(9, 2, 9, 9), Geometry((2, 2), (1, 2), (0,) * 4, (1, 1), 1)),
    "shifts": lambda: second_moment_by_shifts(image(50, 2, 8, 9), Geometry((2, 1), (1, 1), (0, 0, 1, 0), (1, 1), 1)),
    "depthwise": lambda: second_moment_depthwise(image(3, 3, 9, 9), Geometry((1, 2), (1, 1), (0,) * 4, (1, 1), 3)),
}


def reorder(monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
    """Programs run backwards from now on, or shuffled by ``seed``. Grids have one dimension."""
    import triton.runtime.interpreter as interpreter

    builder = interpreter.interpreter_builder
    set_index, orders = builder.set_grid_idx, {}

    def set_grid_idx(x: int, y: int, z: int) -> None:
        count = builder.grid_dim[0]
        if count not in orders:
            orders[count] = list(range(count - 1, -1, -1))
            if seed is not None:
                random.Random(seed).shuffle(orders[count])
        set_index(orders[count][x], y, z)

    monkeypatch.setattr(builder, "set_grid_idx", set_grid_idx)


@interpreted
@pytest.mark.parametrize("name", CALLS)
def test_any_order_of_programs_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = CALLS[name]()
    for seed in (None, 1):
        with monkeypatch.context() as patch, triton_sanitizer.watch() as log:
            reorder(patch, seed)
            actual = CALLS[name]()
        assert len(log.kernels) == 1
        assert torch.equal(actual, expected)
        assert all(not buffer.any() for buffer in arrival.buffers())


def test_parts_of_all_levels_are_summed() -> None:
    for name in ("one tile", "splits", "tail"):
        s = CALLS[name]()
        n, d = 320, s.shape[-1] - 1
        x = torch.linspace(-1, 1, n * d, device=DEVICE).view(n, d).sin()
        torch.testing.assert_close(s[0], reference.second_moment(x.double()).float(), rtol=1e-5, atol=1e-4)


def test_launches_share_counters_and_leave_them_zero() -> None:
    CALLS["splits"]()
    before = [buffer.data_ptr() for buffer in arrival.buffers()]
    CALLS["tail"]()
    assert [buffer.data_ptr() for buffer in arrival.buffers()] == before
    assert all(not buffer.any() for buffer in arrival.buffers())


def test_more_counters_than_there_are_make_a_larger_buffer() -> None:
    x = torch.zeros(1, device=DEVICE)
    with arrival.arrival_counters(x, 10_000) as many:
        assert many.numel() >= 10_000
    with arrival.arrival_counters(x, 10) as few:
        assert few.data_ptr() == many.data_ptr()
    assert few.dtype == torch.int32
    assert not few.any()


def test_counters_of_a_failed_launch_are_given_up() -> None:
    x = torch.zeros(1, device=DEVICE)

    def fail() -> None:
        with arrival.arrival_counters(x, 10) as counters:
            counters[3] = 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with arrival.arrival_counters(x, 10) as fresh:
        assert not fresh.any()


def test_a_captured_launch_has_counters_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeroed inside the capture, whose memory the graph keeps, and never those of launches outside."""
    made = []

    def zeros(count: int, device: Any, **options: Any) -> torch.Tensor:
        made.append(torch.empty(count, **options).fill_(0))
        return made[-1]

    class OnCuda:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "zeros", zeros)
    before = len(arrival.buffers())
    with arrival.arrival_counters(OnCuda(), 7) as one, arrival.arrival_counters(OnCuda(), 7) as two:
        assert [value.data_ptr() for value in made] == [one.data_ptr(), two.data_ptr()]
        assert one.data_ptr() != two.data_ptr()
    assert len(arrival.buffers()) == before


@pytest.mark.parametrize("parts", [1, 2, 4, 5, 9, 10, 100, 101])
def test_two_levels_hold_all_parts(parts: int) -> None:
    fan = arrival.fan_of(parts)
    groups = -(-parts // fan)
    assert fan * groups >= parts
    assert groups <= fan
    assert groups == 1 if parts <= 4 else fan + groups <= 2 * parts**0.5 + 2
