"""The Gram kernel in every launch geometry: tall tiles, whole tiles, split tiles, and a tail split finer."""

from __future__ import annotations

import math

import pytest
import torch
from support import assert_close_to_reference
from triton_support import DEVICE

from lnb_kernels._triton import descriptors, gram, gram_launch, precision
from lnb_kernels._triton.arch import ARCHS, Arch, arch_of
from lnb_kernels._triton.gram_launch import GramPlan, gram_plan, launch_gram
from lnb_kernels.linear import reference
from lnb_kernels.second_moment import reference as moments


def plan(
    n: int, d: int, m: int, tall: bool, head: int, splits: int, staged: bool, tail_splits: int, sum_splits: int
) -> GramPlan:
    """``head`` counts tiles from the first, or from the end if it is not positive."""
    block_i, block_j, block_n = 32 if tall else 16, 16, 16
    rows_of_s = math.ceil(d / block_i)
    tiles = block_i // block_j * (rows_of_s * (rows_of_s + 1) // 2) + math.ceil(m / block_i) * math.ceil(d / block_j)
    sum_blocks = math.ceil(m / block_j) + math.ceil((d + 1) / block_j)
    rows = [math.ceil(math.ceil(n / block_n) / parts) * block_n for parts in (splits, tail_splits, sum_splits)]
    return GramPlan(
        block_i, block_j, block_n, 4, 2, tiles, sum_blocks, head if head > 0 else tiles + head, splits, rows[0], staged,
        tail_splits, rows[1], sum_splits, rows[2], 8, 2,
    )  # fmt: skip


GEOMETRIES = {
    "stored at once": (0, 1, False, 1, 1),
    "sums split": (0, 1, False, 1, 3),
    "staged whole": (0, 1, True, 1, 1),
    "tail split": (-2, 1, False, 3, 2),
    "tail split, all staged": (-2, 2, True, 3, 1),
    "tail whole": (-2, 1, False, 1, 3),
    "all split": (0, 3, True, 3, 3),
    "G'X at once": (3, 1, False, 2, 2),  # all three tiles of G'X: the only ones that tall tiles store at once
}


@pytest.mark.parametrize("aligned", [True, False], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("tall", [False, True], ids=["square", "tall"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry_gives_the_same_sums(
    name: str, tall: bool, aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, splits, staged, tail_splits, sum_splits = GEOMETRIES[name]
    if tall and not staged and head <= 0:
        pytest.skip("tall tiles of S are always staged")
    n, d, m = 41, 40 if aligned else 37, 20 if aligned else 18
    g, x = torch.randn(n, m, device=DEVICE), torch.randn(n, d, device=DEVICE)
    described = count_descriptors(monkeypatch)
    c = torch.randn(d + 1, d + 1, device=DEVICE)
    c = c + c.t()
    s, weight, bias = x.new_empty(1, d + 1, d + 1), x.new_empty(m, d), x.new_empty(m)
    geometry = plan(n, d, m, tall, head, splits, staged, tail_splits, sum_splits)
    launch_gram(
        x.unsqueeze(0), s, g=g, c=c.unsqueeze(0), grad_weight=weight, grad_bias=bias, alpha=0.5, beta=2.0, plan=geometry
    )
    assert bool(described) == (aligned and arch_of(x.device).bulk_copies)
    mask = [False, True, True, True]
    truth = reference.linear_backward(g.double(), x.double(), x.new_empty(m, d).double(), mask)
    plain = reference.linear_backward(g, x, x.new_empty(m, d), mask)
    for got, exact, near in zip((weight, bias), truth[:2], plain[:2], strict=True):
        assert_close_to_reference(got, exact, near)
    assert_close_to_reference(s[0], 0.5 * truth[2] + 2.0 * c.double(), 0.5 * plain[2] + 2.0 * c)
    assert torch.equal(s[0], s[0].t())


def count_descriptors(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tensors that get a descriptor from now on."""
    shapes: list[tuple[int, ...]] = []

    def record(x: torch.Tensor, rows: int, columns: int) -> object:
        shapes.append(tuple(x.shape))
        return descriptors.block_descriptor(x, rows, columns)

    monkeypatch.setattr(gram_launch, "block_descriptor", record)
    return shapes


def layouts_of_rows() -> dict[str, tuple[torch.Tensor, bool]]:
    """``[batch, n, d]`` in several layouts, and whether the copy engine takes them."""
    wide = torch.randn(2, 40, 64, device=DEVICE)
    return {
        "contiguous": (wide, True),
        "one of a batch": (wide[1:], True),
        "some columns": (wide[:, :, 8:40], True),
        "some rows of each": (wide[:, 3:29], True),
        "every second row": (wide[:, ::2], True),
        "d not a multiple of the alignment": (wide[:, :, :33], True),
        "matrices in reverse": (wide.view(40, 2, 64).transpose(0, 1), False),
        "base not aligned": (wide[:, :, 1:33], False),
        "rows not aligned": (torch.randn(2, 40, 63, device=DEVICE), False),
        "columns apart": (wide[:, :, ::2], False),
        "column-major": (wide.mT.contiguous().mT, False),
        "one row for all": (wide[:, :1].expand(2, 40, 64), False),
        "no rows": (wide[:, :0], False),
    }


@pytest.mark.parametrize("name", layouts_of_rows())
def test_layouts_that_the_copy_engine_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, fits = layouts_of_rows()[name]
    assert descriptors.copies_in_blocks(x) == fits
    if x.numel() == 0:
        return
    described = count_descriptors(monkeypatch)
    s = x.new_empty(x.shape[0], x.shape[2] + 1, x.shape[2] + 1)
    launch_gram(x, s)
    assert bool(described) == (fits and arch_of(x.device).bulk_copies)
    for got, rows in zip(s, x, strict=True):
        assert_close_to_reference(got, moments.second_moment(rows.double()), moments.second_moment(rows))


def test_gpus_without_a_copy_engine_take_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    described = count_descriptors(monkeypatch)
    x = torch.randn(1, 40, 64, device=DEVICE)
    for arch, expected in (("sm_80", False), ("gfx942", False), ("sm_90", True), ("sm_100", True)):
        described.clear()
        with monkeypatch.context() as patch:
            patch.setattr(gram_launch, "arch_of", lambda _, arch=arch: ARCHS[arch])
            patch.setattr(gram.gram_kernel, "run", lambda *_, **__: None)
            patch.setattr(gram.gram_finish_kernel, "run", lambda *_, **__: None)
            launch_gram(x, x.new_empty(1, 65, 65))
        assert bool(described) == expected, arch


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
