"""The Gram kernel in every launch geometry: tall tiles, whole tiles, split tiles, and a tail split finer."""

from __future__ import annotations

import math

import pytest
import torch
from support import assert_close_to_reference
from triton_support import DEVICE

from lnb_kernels._triton import precision
from lnb_kernels._triton.arch import ARCHS, Arch
from lnb_kernels._triton.gram_launch import GramPlan, gram_plan, launch_gram
from lnb_kernels.linear import reference


def plan(n: int, d: int, m: int, tall: bool, tail: int, splits: int, tail_splits: int) -> GramPlan:
    block_i, block_j, block_n = 32 if tall else 16, 16, 16
    rows_of_s = math.ceil(d / block_i)
    tiles = block_i // block_j * (rows_of_s * (rows_of_s + 1) // 2) + math.ceil(m / block_i) * math.ceil(d / block_j)
    sum_blocks = math.ceil(m / block_j) + math.ceil((d + 1) / block_j)
    rows = [math.ceil(math.ceil(n / block_n) / parts) * block_n for parts in (splits, tail_splits)]
    return GramPlan(
        block_i, block_j, block_n, 4, 2, tiles, sum_blocks, tiles - tail, splits, rows[0], tail_splits, rows[1], 8, 2
    )


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize(("tail", "splits", "tail_splits"), [(0, 1, 1), (0, 1, 3), (2, 1, 3), (2, 2, 3), (0, 3, 3)])
def test_every_geometry_gives_the_same_sums(tall: bool, tail: int, splits: int, tail_splits: int) -> None:
    n, d, m = 41, 37, 18
    g, x = torch.randn(n, m, device=DEVICE), torch.randn(n, d, device=DEVICE)
    c = torch.randn(d + 1, d + 1, device=DEVICE)
    c = c + c.t()
    s, weight, bias = x.new_empty(1, d + 1, d + 1), x.new_empty(m, d), x.new_empty(m)
    geometry = plan(n, d, m, tall, tail, splits, tail_splits)
    launch_gram(
        x.unsqueeze(0), s, g=g, c=c.unsqueeze(0), grad_weight=weight, grad_bias=bias, alpha=0.5, beta=2.0, plan=geometry
    )
    mask = [False, True, True, True]
    truth = reference.linear_backward(g.double(), x.double(), x.new_empty(m, d).double(), mask)
    plain = reference.linear_backward(g, x, x.new_empty(m, d), mask)
    for got, exact, near in zip((weight, bias), truth[:2], plain[:2], strict=True):
        assert_close_to_reference(got, exact, near)
    assert_close_to_reference(s[0], 0.5 * truth[2] + 2.0 * c.double(), 0.5 * plain[2] + 2.0 * c)
    assert torch.equal(s[0], s[0].t())


def cost(geometry: GramPlan, arch: Arch) -> float:
    """Row steps that the busiest multiprocessor issues: waves of head and tail."""
    waves = math.ceil(geometry.head * geometry.splits / arch.multiprocessors) * geometry.rows_per_split
    late = (geometry.tiles - geometry.head) * geometry.tail_splits
    return waves + math.ceil(late / arch.multiprocessors) * geometry.tail_rows


@pytest.mark.parametrize("d", [2048, 4096, 8192])
def test_multiprocessors_are_kept_busy(d: int) -> None:
    """Tall tiles of one program per multiprocessor: the busiest has at most 5% more than an even share."""
    arch = ARCHS["sm_90"]
    geometry = gram_plan(16384, d, 0, 2, arch)
    assert (geometry.block_i, geometry.block_j) == (256, 128)
    even = geometry.tiles * 16384 / arch.multiprocessors
    assert cost(geometry, arch) <= 1.05 * even


def test_precision_is_the_users_choice_where_the_gpu_has_it() -> None:
    import lnb_kernels as lk

    hopper, amd = ARCHS["sm_90"], ARCHS["gfx942"]
    try:
        for name in ("tf32", "tf32x3", "ieee"):
            lk.set_input_precision(name)
            assert precision.input_precision(hopper) == name
            assert precision.input_precision(amd) == "ieee"
        lk.set_input_precision("auto")
        torch.set_float32_matmul_precision("high")
        assert precision.input_precision(hopper) == "tf32"
        torch.set_float32_matmul_precision("highest")
        assert precision.input_precision(hopper) == "tf32x3"
        with pytest.raises(ValueError, match=r"name='fp8'.*tf32x3"):
            lk.set_input_precision("fp8")
    finally:
        lk.set_input_precision("auto")
        torch.set_float32_matmul_precision("highest")
