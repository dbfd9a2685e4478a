"""What the Triton kernels do to memory: every element of a result is written, nothing outside is touched, no races."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from triton_support import DEVICE, tl, triton, triton_sanitizer

import lnb_kernels
from lnb_kernels._triton import arrival
from lnb_kernels._triton.offsets import lower_tile
from lnb_kernels.conv2d import triton_kernel as conv_kernel
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.triton_patches import second_moment_by_patches
from lnb_kernels.conv2d.triton_shifts import second_moment_by_shifts
from lnb_kernels.cov_matvec import triton_kernel as cov_kernel
from lnb_kernels.linear import triton_kernel as linear_kernel
from lnb_kernels.newton_schulz import triton_kernel as newton_kernel
from lnb_kernels.pcg import triton_kernel as pcg_kernel
from lnb_kernels.second_moment import triton_kernel as moment_kernel

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="compute-sanitizer does this on a GPU")

CONV = Geometry((3, 2), (1, 1), (1, 0, 2, 1), (1, 1), 2)
STRIDED = Geometry((3, 3), (2, 1), (1, 1, 1, 1), (1, 2), 1)
POINTS = Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2)
DEPTHWISE = Geometry((2, 3), (1, 2), (1, 0, 0, 1), (1, 1), 34)
rand = torch.randn


def pcg(scope: str) -> Sequence[torch.Tensor]:
    x = rand(2, 30, 9)
    s = x.mT @ x
    return pcg_kernel.pcg(s, rand(2, 18, 9), rand(2, 18, 9), rand(2, 8), rand(2, 8).abs() + 1, 2, 0.1, scope, 2)


CALLS: dict[str, Callable[[], Any]] = {
    "second_moment": lambda: moment_kernel.second_moment(rand(130, 35), rand(130)),
    "second_moment of blocks": lambda: moment_kernel.second_moment(rand(130, 36), None, None, 3),
    "second_moment_of_one_row": lambda: moment_kernel.second_moment(rand(1, 140)),
    "linear_backward": lambda: linear_kernel.linear_backward(
        rand(150, 20), rand(150, 37), rand(20, 37), [False, *[True] * 3]
    ),
    "cov_matvec": lambda: cov_kernel.cov_matvec(rand(333, 21), rand(3, 22), 0.1),
    "conv2d_cov_matvec": lambda: conv_kernel.conv2d_cov_matvec(rand(2, 4, 6, 5), rand(6, 13), 0.1, CONV.encode()),
    "shifts": lambda: second_moment_by_shifts(rand(2, 4, 6, 5), CONV),
    "pixels in planes": lambda: conv_kernel.conv2d_second_moment(rand(3, 6, 5, 8), POINTS.encode()),
    "depthwise": lambda: conv_kernel.conv2d_second_moment(rand(2, 34, 4, 5), DEPTHWISE.encode()),
    "patches by tap": lambda: second_moment_by_patches(rand(2, 5, 7, 3).permute(0, 3, 1, 2), STRIDED),
    "patches": lambda: second_moment_by_patches(rand(2, 3, 7, 5), STRIDED),
    "pcg by rows": lambda: pcg("neuron"),
    "pcg by phases": lambda: pcg("layer"),
    "newton_schulz": lambda: newton_kernel.newton_schulz(rand(2, 20, 50) / 40, [3.4, -4.8, 2.0], 2),
    "newton_schulz_root": lambda: newton_kernel.newton_schulz_root(
        torch.eye(40).expand(2, 40, 40) / 40, [3.4, -4.8, 2.0], 2
    ),
}
# h starts as a copy of h0, norms are summed by torch; torch brings h back to its size. What a kernel leaves of the memory
# behind them is seen by `unwritten`.
LAST_LAUNCH_WRITES_ALL = {"pcg by phases", "pcg by rows"}
PADDED_WORKSPACE = {"cov_matvec", "conv2d_cov_matvec"}  # the padding is never read: a kernel's early read raises


@pytest.fixture(scope="module")
def launched() -> set[str]:
    return set()


@pytest.mark.parametrize("name", CALLS)
def test_results_are_written_whole_without_races(
    name: str, launched: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newton_kernel, "symmetric_products_pay", lambda size: True)
    monkeypatch.setattr(pcg_kernel, "one_launch_pays", lambda *_: True)
    with triton_sanitizer.watch() as log:
        results = CALLS[name]()
    launched.update(log.kernels)
    assert log.fresh, "nothing was watched"
    assert name in PADDED_WORKSPACE or not log.unwritten(), (
        "fresh memory, of results or of the workspace, was not written whole"
    )
    for result in [results] if isinstance(results, torch.Tensor) else results:
        assert bool(torch.isfinite(result).all())
        full_product = name == "newton_schulz"  # the last product of a step is the vendor's
        if not full_product and name not in LAST_LAUNCH_WRITES_ALL:
            assert log.covers(result), "an element was never written"


def test_every_kernel_was_launched(launched: set[str]) -> None:
    """After the tests above: no kernel of the package escapes them, but those that find tensors by tables of addresses.

    ``test_fused_kernels`` and ``test_triton_refresh`` compare these with float64.
    """
    defined = set()
    for module in pkgutil.walk_packages(lnb_kernels.__path__, "lnb_kernels."):
        if "triton" in module.name and not module.name.startswith(
            ("lnb_kernels.fused_step", "lnb_kernels.refresh", "lnb_kernels.multi_tensor", "lnb_kernels._triton.tables")
        ):
            values = vars(importlib.import_module(module.name)).values()
            defined |= {value.__name__ for value in values if isinstance(value, type(careless_kernel))}
    assert {name for name in defined if name.endswith("_kernel")} == launched


@triton.jit
def careless_kernel(x_ptr, out_ptr, n, LOAD: tl.constexpr, STORE: tl.constexpr):
    lane = tl.arange(0, 8)
    x = tl.load(x_ptr + lane, mask=lane < n + LOAD, other=0.0)
    tl.store(out_ptr + tl.program_id(0) * 0 + lane, x, mask=lane < n + STORE)


@pytest.mark.parametrize(
    ("load", "store", "programs", "message"),
    [
        (1, 0, 1, "1 of 6 elements of a load"),
        (0, 2, 1, "2 of 7 elements of a store"),
        (0, 0, 2, "5 elements are written by several"),
    ],
)
def test_careless_kernels_are_caught(load: int, store: int, programs: int, message: str) -> None:
    x, out = torch.zeros(5), torch.zeros(5)
    with pytest.raises(Exception, match=message), triton_sanitizer.watch():
        careless_kernel[(programs,)](x, out, 5, load, store)


def test_a_read_before_the_write_is_caught() -> None:
    with triton_sanitizer.watch() as log:
        fresh = torch.zeros(5).new_empty(5)
        careless_kernel[(1,)](torch.zeros(5), fresh, 4, 0, 0)
        assert log.unwritten() == [(5,)]
        with pytest.raises(Exception, match="1 elements are read before they are written"):
            careless_kernel[(1,)](fresh, torch.zeros(5), 5, 0, 0)


@triton.jit
def handing_over_kernel(
    parts_ptr, out_ptr, counter_ptr, count, ARRIVE: tl.constexpr, EARLY: tl.constexpr, is_last: tl.constexpr
):
    program = tl.program_id(0)
    last = program == count - 1
    if ARRIVE and EARLY:
        last = is_last(counter_ptr, count)
    tl.store(parts_ptr + program, program + 1.0)
    if ARRIVE and not EARLY:
        last = is_last(counter_ptr, count)
    if last:
        lane = tl.arange(0, 8)
        tl.store(out_ptr, tl.sum(tl.load(parts_ptr + lane, mask=lane < count, other=0.0), 0))


def test_only_an_arrival_after_the_store_hands_a_part_over() -> None:
    """In the interpreter's order of programs all three give the right sum; two of them are races all the same."""
    for arrive, early in ((True, False), (True, True), (False, False)):
        parts, out, counter = torch.zeros(5), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
        race = pytest.raises(triton_sanitizer.RaceError, match="reads 4 elements that other programs write")
        with race if early or not arrive else nullcontext(), triton_sanitizer.watch():
            handing_over_kernel[(5,)](parts, out, counter, 5, arrive, early, arrival.is_last)
        assert out.item() == 15
        assert counter.item() == 0


def test_elements_that_are_not_written_are_noticed() -> None:
    x, out = torch.zeros(5), torch.zeros(5)
    with triton_sanitizer.watch() as log:
        careless_kernel[(1,)](x, out, 4, 0, 0)
    assert log.covers(out[:4])
    assert not log.covers(out)


@pytest.mark.parametrize("make", [torch.empty_like, lambda t: torch.empty(3), lambda t: t.new_empty(3)])
def test_fresh_memory_is_poisoned(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert bool(make(torch.zeros(3)).isnan().all())


@pytest.mark.parametrize("blocks", [1, 2, 3, 64, 511, 512])
def test_lower_tiles_are_each_found_once(blocks: int) -> None:
    @triton.jit
    def decode(out_ptr, blocks, count, lower: tl.constexpr, BLOCK: tl.constexpr):
        index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        i, j = lower(index, blocks)
        tl.store(out_ptr + 2 * index, i, mask=index < count)
        tl.store(out_ptr + 2 * index + 1, j, mask=index < count)

    count = blocks * (blocks + 1) // 2
    out = torch.full((count, 2), -1, dtype=torch.int32)
    decode[(math.ceil(count / 4096),)](out, blocks, count, lower_tile, 4096)
    assert torch.equal(out.long().unique(dim=0), torch.tril_indices(blocks, blocks).t())
