"""The CUDA multi-tensor kernels, simulated on the CPU, in three orders of threads.

tests/ops/test_multi_tensor.py runs on them too.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import pytest
import torch
from cusim.simulated import ORDERS, SANITIZED, Simulator, cuda_kernels_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, assert_close_to_reference, average_
from torch import Tensor

from lnb_kernels import multi_tensor
from lnb_kernels.multi_tensor import cuda_kernel, reference


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def offset(tensor: Tensor, elements: int) -> Tensor:
    """The same values, not aligned to 16 bytes."""
    memory = torch.full((tensor.numel() + elements,), float("nan"), dtype=tensor.dtype)
    memory[elements:] = tensor.reshape(-1)
    return memory[elements:].view(tensor.shape)


PAIRS = [(d, d) for d in DTYPES] + [
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float16),
    (torch.float16, torch.float32), (torch.bfloat16, torch.float16), (torch.float64, torch.float32),
]  # fmt: skip
LISTS = {
    "sizes": st.lists(st.one_of(st.integers(0, 40), st.integers(8180, 8200), st.just(20000)), min_size=1, max_size=8),
    "pair": st.sampled_from(PAIRS),
    "shift": st.integers(0, 9),
    "order": st.sampled_from(sorted(ORDERS)),
    "seed": st.integers(0, 2**31 - 1),
}


@given(**LISTS)
@settings(max_examples=6 if SANITIZED else 60, deadline=None)
def test_random_lists(
    sizes: list[int], pair: tuple[torch.dtype, torch.dtype], shift: int, order: str, seed: int
) -> None:
    torch.manual_seed(seed)
    xs = [offset(torch.randn(n).to(pair[0]), shift) for n in sizes]
    ys = [torch.randn(n).to(pair[1]) for n in sizes]
    layers = torch.randint(len(sizes), (len(sizes),)).tolist()
    scales, rate, ok = torch.rand(len(xs)), torch.tensor(0.5), torch.tensor(seed % 4 > 0)
    start, expected, combined, right_combined = copies(xs), copies(xs), copies(xs), copies(xs)
    reference.ema_combined_(expected, right_combined, ys, 0.75, scales, 0.5, ok)
    reference.apply_(expected, ys, scales, 0.0, rate, 0.125, None, ok)
    with cuda_kernels_on_cpu() as simulator:
        simulator.set(order, seed)
        cuda_kernel.ema_combined_(start, combined, ys, 0.75, scales, 0.5, ok)
        cuda_kernel.ema_combined_(xs, copies(xs), ys, 0.75, torch.ones(len(xs)), 0.0, ok)
        assert all(torch.equal(*pair) for pair in zip(start, xs, strict=True))
        cuda_kernel.apply_(xs, ys, scales, 0.0, rate, 0.125, None, ok)
        products, sums = cuda_kernel.dot(xs, ys), cuda_kernel.dot(xs, ys, layers)
        assert cuda_kernel.all_finite(xs)
    for x, right in zip((*xs, *combined), (*expected, *right_combined), strict=True):
        # Each of two updates rounds numbers of size up to 5, and fuses a multiplication with an addition or does not.
        unit = torch.finfo(x.dtype).eps
        torch.testing.assert_close(x, right, rtol=2 * unit, atol=10 * unit)
    truth = torch.stack([(x.double() * y.double()).sum() for x, y in zip(xs, ys, strict=True)])
    assert_close_to_reference(products, truth, reference.dot(xs, ys))
    of_layers = torch.zeros(max(layers) + 1, dtype=torch.float64).index_add(0, torch.tensor(layers), products.double())
    torch.testing.assert_close(sums.double(), of_layers, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("direction_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("param_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ORDERS)
def test_master_weights(
    simulated: Simulator, order: str, param_dtype: torch.dtype, direction_dtype: torch.dtype
) -> None:
    simulated.set(order)
    masters = [torch.randn(n) for n in (3, 0, 9000)]
    params = [torch.zeros_like(master, dtype=param_dtype) for master in masters]
    directions = [torch.randn_like(master).to(direction_dtype) for master in masters]
    right_masters, right_params = copies(masters), copies(params)
    scales, no = torch.rand(3), torch.tensor(False)
    multi_tensor.apply_master_(masters, params, directions, scales, 0.5, 0.25, no)
    assert all(torch.equal(*pair) for pair in zip((*masters, *params), (*right_masters, *right_params), strict=True))
    multi_tensor.apply_master_(masters, params, directions, scales, 0.5, 0.25)
    reference.apply_master_(right_masters, right_params, directions, scales, 0.5, None, 0.25, None, None)
    for master, right in zip(masters, right_masters, strict=True):
        torch.testing.assert_close(master, right, rtol=3e-7, atol=1e-6)
    for param, master in zip(params, masters, strict=True):
        assert torch.equal(param, master.to(param_dtype))


@pytest.mark.parametrize("order", ORDERS)
def test_sums_have_the_same_bits_in_every_order(simulated: Simulator, order: str) -> None:
    xs, ys = [torch.randn(50_001), torch.randn(7)], [torch.randn(50_001), torch.randn(7)]
    expected = multi_tensor.dot(xs, ys, [0, 0])
    for seed in range(3):
        simulated.set(order, seed)
        assert torch.equal(multi_tensor.dot(xs, ys, [0, 0]), expected)


@pytest.mark.parametrize(("tensors", "tables"), [(1, 1), (200, 1), (320, 1), (321, 2), (700, 3)])
def test_launches_do_not_depend_on_the_number_of_tensors(simulated: Simulator, tensors: int, tables: int) -> None:
    assert simulated.module.TENSORS_PER_LAUNCH == 320
    xs, ys = [torch.full((3,), float(i)) for i in range(tensors)], [torch.ones(3) for _ in range(tensors)]
    simulated.set()
    products = multi_tensor.dot(xs, ys)
    assert simulated.launches == ["multi_tensor.dot"] * tables + ["multi_tensor.segment_sums"] * tables
    assert torch.equal(products, 3 * torch.arange(tensors, dtype=torch.float32))
    simulated.set()
    multi_tensor.apply_(xs, ys, torch.arange(tensors, dtype=torch.float32), 1.0, 0.0)
    assert simulated.launches == ["multi_tensor.apply"] * tables
    assert all(torch.equal(x, torch.zeros(3)) for x in xs)


def test_a_launch_that_fails_is_an_exception_with_the_kernel_in_it(simulated: Simulator) -> None:
    xs, ys, halves = [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3, dtype=torch.bfloat16)]
    calls = {
        "multi_tensor.ema_combined": lambda: multi_tensor.ema_combined_(xs, ys, 0.5, torch.ones(1), 0.5),
        "multi_tensor.dot": lambda: multi_tensor.dot(xs, ys),
        "multi_tensor.apply": lambda: multi_tensor.apply_(xs, ys, torch.ones(1), 0.5, 0.5),
        "multi_tensor.apply_master": lambda: multi_tensor.apply_master_(xs, halves, ys, torch.ones(1), 0.5, 0.5),
        "multi_tensor.all_finite": lambda: multi_tensor.all_finite(xs),
    }
    for name, call in calls.items():
        simulated.set(fail_launch=0)
        with pytest.raises(RuntimeError, match=f"{name} failed: simulated failure"):
            call()
    simulated.set(fail_launch=1)
    with pytest.raises(RuntimeError, match=r"multi_tensor.segment_sums failed"):
        multi_tensor.dot(xs, ys)
    assert torch.equal(xs[0], torch.ones(3))
    assert not halves[0].any()


def test_overlapping_memory_is_refused_before_any_write(simulated: Simulator) -> None:
    memory = torch.zeros(100, dtype=torch.bfloat16)
    ones, masters = torch.ones(10, dtype=torch.bfloat16), torch.zeros(20)
    scales = torch.ones(1)
    calls = {
        r"averages\[1\] and averages\[0\]": lambda: average_([memory[:10], memory[5:15]], [ones, ones], 0.5),
        r"directions\[0\] and params\[0\]": lambda: multi_tensor.apply_(
            [memory[:10]], [memory[9:19]], scales, 0.5, 0.0
        ),
        r"directions\[0\] and masters\[0\]": lambda: multi_tensor.apply_master_(
            [masters[:10]], [ones], [masters[5:15]], scales, 0.5, 0.0
        ),
        r"directions\[0\] and params\[0\]|params\[0\] and directions\[0\]": lambda: multi_tensor.apply_master_(
            [masters[:10]], [memory[:10]], [memory[5:15]], scales, 0.5, 0.0
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert simulated.launches == []


@pytest.mark.parametrize(
    ("address", "size", "message"),
    [(0, 4, "null pointer"), (1026, 4, "not aligned"), (1024, -1, "negative size, -1"), (1024, 2**61, "more entries")],
)
def test_bindings_refuse_addresses_that_would_crash(
    simulated: Simulator, address: int, size: int, message: str
) -> None:
    native = simulated.module
    kind, where = native.Type.FLOAT32, (0, 0)
    with pytest.raises(ValueError, match=message):
        native.dot([address], kind, [address], kind, [size], [0], 0, where)
    with pytest.raises(ValueError, match="one size per address"):
        native.dot([1024, 1024], kind, [1024, 1024], kind, [0], [0], 0, where)
    with pytest.raises(ValueError, match="no kernel for this pair"):
        native.dot([], kind, [], native.Type.FLOAT64, [], [], 0, where)
    with pytest.raises(RuntimeError, match="cudaSetDevice failed"):
        native.dot([], kind, [], kind, [], [], 0, (1, 0))


def test_bindings_refuse_what_kernels_would_read_or_write_elsewhere(simulated: Simulator) -> None:
    native, where = simulated.module, (0, 0)
    kind, wide = native.Type.FLOAT32, native.Type.FLOAT64
    x, y, z, sums = (
        torch.zeros(8, dtype=dtype) for dtype in (torch.float32, torch.float32, torch.float32, torch.float64)
    )
    a, b, c, to = ([t.data_ptr()] for t in (x, y, z, sums))
    number, four, slot = (0.5, 0, wide), [4], [0]
    apply = (a, kind, b, kind, four)
    calls = [
        ("partials has entries but a null pointer", lambda: native.dot(a, kind, b, kind, four, slot, 0, where)),
        ("partials is not aligned", lambda: native.dot(a, kind, b, kind, four, slot, to[0] + 4, where)),
        ("slots has a negative size", lambda: native.dot(a, kind, b, kind, four, [-1], *to, where)),
        ("slots: one per tensor", lambda: native.dot(a, kind, b, kind, four, [], *to, where)),
        ("overlap", lambda: native.apply(a, kind, a, kind, four, slot, *c, kind, number, number, 0, where)),
        ("scales has entries but a null", lambda: native.apply(*apply, slot, 0, kind, number, number, 0, where)),
        ("lr is not aligned", lambda: native.apply(*apply, slot, *c, kind, (0.0, 1026, kind), number, 0, where)),
        ("weight_decay is not", lambda: native.apply(*apply, slot, *c, kind, number, (0.0, 1026, kind), 0, where)),
        ("shares has entries but a null", lambda: native.ema_combined(
            a, kind, b, kind, c, four, slot, 0.5, 0, kind, 0.5, 0, where)),
        ("out.* and averages.* overlap|averages.* and out.* overlap", lambda: native.ema_combined(
            a, kind, b, kind, a, four, slot, 0.5, *to, wide, 0.5, 0, where)),
        ("params.* overlap", lambda: native.apply_master(
            a, a, native.Type.BFLOAT16, b, kind, four, slot, *c, kind, number, number, 0, where)),
        ("finite has an entry but a null", lambda: native.all_finite(a, kind, four, 0, where)),
        ("first: ", lambda: native.segment_sums([0, 3, 2], *to, *c, where)),
        ("first: ", lambda: native.segment_sums([-1, 3], *to, *c, where)),
        ("out has entries but a null", lambda: native.segment_sums([0, 3], *to, 0, where)),
        ("partials has entries but a null", lambda: native.segment_sums([0, 3], 0, *c, where)),
    ]  # fmt: skip
    for message, call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert simulated.launches == []
    native.segment_sums([0, 0], 0, *c, where)  # no partial sums: the sum is zero


def test_offsets_beyond_two_to_the_31_elements(simulated: Simulator) -> None:
    """Only the last block runs, at the end of memory of which only the pages that it touches exist."""
    native = simulated.module
    size = 2**32 + 8192 + 5
    kind, flags = native.Type.BFLOAT16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    with mmap.mmap(-1, 2 * size, flags=flags) as memory, mmap.mmap(-1, 2 * size, flags=flags) as other_memory:
        x, y = (torch.frombuffer(buffer, dtype=torch.bfloat16) for buffer in (memory, other_memory))
        x[-1], x[-6], y[-1] = 3.0, 1.0, 2.0
        blocks = -(-size // native.PIECE_SIZE)
        partials = torch.full((blocks,), -1.0, dtype=torch.float64)
        simulated.set(first_block=blocks - 1)
        native.dot([x.data_ptr()], kind, [y.data_ptr()], kind, [size], [0], partials.data_ptr(), (0, 0))
        assert partials[-1] == 6.0
        assert partials[:-1].eq(-1).all()
        factor, rate = torch.ones(1), (1.0, 0, native.Type.FLOAT64)
        native.apply(
            [x.data_ptr()], kind, [y.data_ptr()], kind, [size], [0], factor.data_ptr(), native.Type.FLOAT32, rate, rate,
            0, (0, 0),
        )  # fmt: skip
        assert x[-1] == 3.0 - (2.0 + 3.0)
        assert x[-6] == 1.0
        del x, y


def test_more_blocks_than_a_launch_takes_are_refused(simulated: Simulator) -> None:
    native, size = simulated.module, 2**31 * simulated.module.PIECE_SIZE
    kind, partials = native.Type.FLOAT32, torch.zeros(1, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"multi_tensor\.dot would need 2147483648 blocks; a launch takes at most 2147483647"
    ):
        native.dot([4096], kind, [4096], kind, [size], [0], partials.data_ptr(), (0, 0))
    assert simulated.launches == []


def test_every_dtype_of_scales_and_rates_is_read_on_the_device(simulated: Simulator) -> None:
    for dtype in DTYPES:
        x, number = [torch.full((5,), 2.0)], torch.tensor(0.5, dtype=dtype)
        multi_tensor.apply_(x, [torch.ones(5)], torch.full((1,), 0.25, dtype=dtype), number, number)
        assert torch.equal(x[0], torch.full((5,), 2 - 0.5 * (0.25 + 0.5 * 2)))
