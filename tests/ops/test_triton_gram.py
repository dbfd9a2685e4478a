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
from lnb_kernels._triton.gram_tail import NO_TAIL, cut_tail
from lnb_kernels.linear import reference
from lnb_kernels.second_moment import reference as moments


def plan(
    n: int, d: int, m: int, tall: bool, tail: int, splits: int, staged: bool, programs: int, sum_splits: int
) -> GramPlan:
    """``tail`` tiles by ``programs`` programs; a negative ``tail`` counts the tiles before it."""
    block_i, block_j, block_n = 32 if tall else 16, 16, 16
    rows_of_s = math.ceil(d / block_i)
    tiles = block_i // block_j * (rows_of_s * (rows_of_s + 1) // 2) + math.ceil(m / block_i) * math.ceil(d / block_j)
    sum_blocks = math.ceil(m / block_j) + math.ceil((d + 1) / block_j)
    steps = math.ceil(n / block_n)
    rows = [math.ceil(steps / parts) * block_n for parts in (splits, sum_splits)]
    tail = min(tail, tiles) if tail >= 0 else tiles + tail
    cut = cut_tail(tail, programs, steps)
    assert cut is not None
    return GramPlan(
        block_i, block_j, block_n, 4, 2, tiles, sum_blocks, tiles - tail, splits, rows[0], staged, cut, sum_splits, rows[1]
    )  # fmt: skip


ALL = 99
GEOMETRIES = {
    "stored at once": (0, 1, False, 1, 1),
    "sums split": (0, 1, False, 1, 3),
    "staged whole": (0, 1, True, 1, 1),
    "all split": (0, 3, True, 1, 3),
    "tail shared": (2, 1, False, 3, 2),  # 2 tiles of 3 steps in 3 shares of 2: the second ends one and begins the other
    "tail shared, all staged": (2, 2, True, 3, 1),
    "tail in two groups": (2, 1, False, 4, 1),
    "tail of single steps": (2, 1, False, 6, 1),
    "tail whole": (2, 1, False, 2, 3),
    "all shared": (ALL, 1, False, 17, 2),
    "all shared, in groups": (ALL, 1, False, 28, 1),
    "G'X at once": (-3, 1, False, 17, 2),  # all three tiles of G'X: the only ones that tall tiles store at once
}


def cases() -> list[tuple[str, bool, bool]]:
    """Geometries, whether tiles are tall, and whether loads are by descriptors. Tiles of either form are loaded in one way, of
    the next geometry in the other way: all pairs."""
    names = list(GEOMETRIES)
    return [(name, tall, tall == (names.index(name) % 2 == 0)) for name in names for tall in (False, True)]


@pytest.mark.parametrize(
    ("name", "tall", "aligned"),
    cases(),
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_every_geometry_gives_the_same_sums(
    name: str, tall: bool, aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail, splits, staged, programs, sum_splits = GEOMETRIES[name]
    if tall and not staged and 0 <= tail < ALL:
        pytest.skip("tall tiles of S are always staged")
    n, d, m = 41, 40 if aligned else 37, 20 if aligned else 18
    g, x = torch.randn(n, m, device=DEVICE), torch.randn(n, d, device=DEVICE)
    described = count_descriptors(monkeypatch)
    c = torch.randn(d + 1, d + 1, device=DEVICE)
    c = c + c.t()
    s, weight, bias = x.new_empty(1, d + 1, d + 1), x.new_empty(m, d), x.new_empty(m)
    geometry = plan(n, d, m, tall, tail, splits, staged, programs, sum_splits)
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
        "matrices side by side": (wide.view(40, 2, 64).transpose(0, 1), True),
        "some columns side by side": (wide.view(40, 2, 64).transpose(0, 1)[:, :, :33], True),
        "matrices side by side, not aligned": (
            torch.randn(40, 66, device=DEVICE).view(40, 2, 33).transpose(0, 1),
            False,
        ),
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
            launch_gram(x, x.new_empty(1, 65, 65))
        assert bool(described) == expected, arch


@pytest.mark.parametrize("tiles", [1, 2, 5, 72, 131])
@pytest.mark.parametrize("programs", [132, 264])
@pytest.mark.parametrize("steps", [1, 2, 3, 100, 256, 2**23])
def test_shares_cut_the_tail_into_pieces_without_gaps(tiles: int, programs: int, steps: int) -> None:
    """Slots count the pieces in order, as the two kernels compute them."""
    tail = cut_tail(tiles, programs, steps)
    assert tail is not None
    assert (tail.groups * tail.tiles, tail.steps) == (tiles, steps)
    assert tail.programs <= programs
    assert tail.share == math.ceil(tiles * steps / programs) <= steps
    ends = {min(end, tail.tiles * steps) for end in range(0, (tail.shares + 1) * tail.share, tail.share)}
    ends |= set(range(0, (tail.tiles + 1) * steps, steps))
    starts = sorted(ends)[:-1]
    assert tail.pieces == len(starts)
    for slot, start in enumerate(starts):
        begin = start // tail.share * tail.share
        first = begin // steps
        assert start // tail.share + first - begin // tail.common + (start > begin) == slot
        if start % steps == 0:
            assert start // tail.share + start // steps - start // tail.common == slot


def test_more_tiles_than_programs_are_no_tail() -> None:
    assert cut_tail(133, 132, 256) is None
    assert cut_tail(131, 132, 2**25) is None
    assert cut_tail(0, 132, 256) == NO_TAIL
    assert NO_TAIL.programs == NO_TAIL.pieces * NO_TAIL.groups == 0


def cost(geometry: GramPlan, arch: Arch) -> float:
    """Row steps that the busiest multiprocessor issues: waves of head and tail."""
    waves = math.ceil(geometry.head * geometry.splits / arch.multiprocessors) * geometry.samples_per_split
    late = math.ceil(geometry.tail.programs / arch.multiprocessors)
    return waves + late * geometry.tail.share * geometry.block_n


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
