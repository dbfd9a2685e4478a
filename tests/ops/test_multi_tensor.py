"""Multi-tensor ops: every backend, dtype, layout and instruction set against float64; checks; determinism."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, Operators, assert_close_to_reference, average_
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import lnb_kernels as lk
from lnb_kernels import _native, multi_tensor
from lnb_kernels.multi_tensor import native_kernel, reference
from lnb_kernels.multi_tensor.grouping import native_type

SHAPES = [(3, 5), (), (0,), (1,), (17,), (4, 3, 2, 2), (16384,), (16385,), (50001,)]
WHERE_NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
)
needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


def fill(shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(tuple(shape)).to(dtype) for shape in shapes]


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def doubles(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def copy_(target: Tensor, source: Tensor) -> None:
    """``target``, which is zero, becomes ``source``."""
    multi_tensor.apply_([target], [source], torch.tensor([-1.0]), 1.0, 0.0)


def assert_lists_close(actual: Sequence[Tensor], truth: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    assert_close_to_reference(
        flat(actual), flat(truth), flat([p.to(a.dtype) for a, p in zip(actual, plain, strict=True)])
    )


@pytest.mark.parametrize(("x_dtype", "y_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_values(backend: str, x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    xs, ys = fill(SHAPES, x_dtype), fill(SHAPES, y_dtype)
    scales = torch.rand(len(xs))
    wide = torch.promote_types(torch.promote_types(x_dtype, y_dtype), torch.float32)

    averages = copies(xs)
    average_(averages, ys, 0.9)
    truth = [0.9 * x + (1 - 0.9) * y for x, y in zip(doubles(xs), doubles(ys), strict=True)]
    average = [0.9 * x.to(wide) + (1 - 0.9) * y.to(wide) for x, y in zip(xs, ys, strict=True)]
    assert_lists_close(averages, truth, average)

    for take in (0.0, 0.5):
        updated = copies(xs)
        combined = multi_tensor.ema_combined_(updated, ys, 0.9, scales, take)
        assert [c.dtype for c in combined] == [x_dtype] * len(xs)
        assert_lists_close(updated, truth, average)
        assert_lists_close(
            combined,
            [s * x + take * y for x, y, s in zip(doubles(updated), doubles(ys), scales.double(), strict=True)],
            [s * x.to(wide) + take * y.to(wide) for x, y, s in zip(updated, ys, scales, strict=True)],
        )
        targets = [torch.full_like(x, torch.nan) for x in xs]
        again = multi_tensor.ema_combined_(copies(xs), ys, 0.9, scales, take, out=targets)
        assert all(a is target for a, target in zip(again, targets, strict=True))
        assert all(torch.equal(target, c) for target, c in zip(targets, combined, strict=True))

    products = multi_tensor.dot(xs, ys)
    assert products.dtype == torch.float64
    truth_products = torch.stack([(x * y).sum() for x, y in zip(doubles(xs), doubles(ys), strict=True)])
    assert_close_to_reference(
        products.to(wide),
        truth_products,
        torch.stack([(x.to(wide) * y.to(wide)).sum() for x, y in zip(xs, ys, strict=True)]),
    )

    params = copies(xs)
    multi_tensor.apply_(params, ys, scales, 0.1, 0.01)
    truth = [x - 0.1 * (s * y + 0.01 * x) for x, y, s in zip(doubles(xs), doubles(ys), scales.double(), strict=True)]
    plain = [x.to(wide) - 0.1 * (s * y.to(wide) + 0.01 * x.to(wide)) for x, y, s in zip(xs, ys, scales, strict=True)]
    assert_lists_close(params, truth, plain)


def test_mixed_dtypes_in_one_list(backend: str) -> None:
    xs = [torch.randn(100, dtype=torch.float64).to(d) for d in DTYPES]
    ys = [torch.randn(100, dtype=torch.float64).to(d) for d in reversed(DTYPES)]
    products = multi_tensor.dot(xs, ys)
    assert products.dtype == torch.float64
    torch.testing.assert_close(
        products,
        torch.stack([(x.double() * y.double()).sum() for x, y in zip(xs, ys, strict=True)]),
        rtol=1e-6,
        atol=1e-6,
    )
    before = copies(xs)
    average_(xs, ys, 0.5)
    for x, old, y in zip(xs, before, ys, strict=True):
        torch.testing.assert_close(x, (0.5 * old.double() + 0.5 * y.double()).to(x.dtype))


@pytest.mark.parametrize("bits", range(0, 65536, 4096))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@needs_native
def test_every_16_bit_value_is_read_and_written_as_torch_does(dtype: torch.dtype, bits: int) -> None:
    """A step from zero copies bit for bit, and rounds float32 values around each 16-bit number."""
    lk.set_backend("native")
    try:
        every = torch.arange(bits, bits + 4096, dtype=torch.int32).to(torch.int16).view(dtype)
        finite = every[every.isfinite()]
        if finite.numel() == 0:
            finite = torch.zeros(1, dtype=dtype)
        wide = torch.zeros(finite.shape)
        copy_(wide, finite)
        assert torch.equal(wide, finite.float())
        up = torch.nextafter(wide, torch.tensor(float("inf")))
        between = torch.cat((wide, up, wide * (1 + 2.0**-9), wide * (1 + 2.0**-12), wide * 3e4, wide * 1e-6))
        between = between[between.isfinite()]
        narrow = torch.zeros(between.shape, dtype=dtype)
        copy_(narrow, between)
        assert torch.equal(narrow, between.to(dtype))
    finally:
        lk.set_backend("auto")


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_finite_finds_one_bad_entry_anywhere(backend: str, dtype: torch.dtype) -> None:
    tensors = fill(SHAPES, dtype)
    largest = torch.finfo(dtype).max
    tensors[-1][7], tensors[-1][8] = largest, -largest
    assert multi_tensor.all_finite(tensors)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for position in (0, 16383, 16384, 50000):
            tensors[-1][position] = bad
            assert not multi_tensor.all_finite(tensors), (bad, position)
            tensors[-1][position] = 0.0
    result = multi_tensor.all_finite([])
    assert result.dtype == torch.bool
    assert result.shape == ()
    assert result


def test_ok_false_writes_nothing_even_from_nan(backend: str) -> None:
    xs = fill(SHAPES, torch.float32)
    before = copies(xs)
    bad = [torch.full_like(x, float("nan")) for x in xs]
    no, yes = torch.tensor(False), torch.tensor(True)
    average_(xs, bad, 0.9, no)
    multi_tensor.apply_(xs, bad, torch.ones(len(xs)), 0.1, 0.1, no)
    combined = multi_tensor.ema_combined_(xs, bad, 0.9, torch.full((len(xs),), 2.0), 0.0, no)
    assert all(torch.equal(c, 2 * old) for c, old in zip(combined, before, strict=True))
    assert all(torch.equal(x, old) for x, old in zip(xs, before, strict=True))
    ones = [torch.ones_like(x) for x in xs]
    average_(xs, ones, 0.0, yes)
    assert all(torch.equal(x, one) for x, one in zip(xs, ones, strict=True))


def test_products_of_any_size_are_finite(backend: str) -> None:
    """float32 can square neither the largest nor the least of its numbers."""
    for value in (1e-44, 1e-30, 1e25, 3e38):
        x = [torch.full((1003,), value), torch.full((4, 8), -value)]
        truth = torch.stack([t.double().square().sum() for t in x])
        torch.testing.assert_close(multi_tensor.dot(x, x), truth, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_scale_of_zero_switches_a_direction_off(backend: str, dtype: torch.dtype) -> None:
    """It may then hold NaN: a layer that stands still, among others that move."""
    xs, ys = fill(SHAPES, dtype), fill(SHAPES, dtype)
    scales = torch.ones(len(xs))
    scales[1] = 0
    moved = copies(xs)
    multi_tensor.apply_(moved, ys, scales, 0.5, 0.25)
    ys[1].fill_(float("nan"))
    again = copies(xs)
    multi_tensor.apply_(again, ys, scales, 0.5, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(moved, again, strict=True))
    assert all(bool(x.isfinite().all()) for x in moved)
    assert xs[1].numel() > 0
    assert not torch.equal(moved[1], xs[1])  # by weight decay


def test_rates_as_tensors_equal_rates_as_numbers(backend: str) -> None:
    xs, ys, scales = fill(SHAPES, torch.float32), fill(SHAPES, torch.float32), torch.rand(len(SHAPES))
    numbers, tensors = copies(xs), copies(xs)
    multi_tensor.apply_(numbers, ys, scales, 0.125, 0.25)
    multi_tensor.apply_(tensors, ys, scales, torch.tensor(0.125), torch.tensor(0.25, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(numbers, tensors, strict=True))


def strided(kind: str) -> tuple[list[Tensor], list[Tensor]]:
    x, y = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    last = torch.channels_last
    return {
        "both channels_last": ([x.to(memory_format=last)], [y.to(memory_format=last)]),
        "one channels_last": ([x], [y.to(memory_format=last)]),
        "columns": ([x[..., ::2], x[..., 1::2]], [y[..., ::2], y[..., 1::2]]),
        "transposed": ([x[0, 0].T], [y[0, 0]]),
        "expanded values": ([x], [y[:1].expand(2, 6, 4, 4)]),
        "dense among strided": ([x[0], x[1, ..., ::2]], [y[0], y[1, ..., ::2]]),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["both channels_last", "one channels_last", "columns", "transposed", "expanded values", "dense among strided"],
)
def test_layouts(backend: str, kind: str) -> None:
    xs, ys = strided(kind)
    truth = [0.9 * x.double() + (1 - 0.9) * y.double() for x, y in zip(xs, ys, strict=True)]
    torch.testing.assert_close(
        multi_tensor.dot(xs, ys),
        torch.stack([(x.double() * y.double()).sum() for x, y in zip(xs, ys, strict=True)]),
        rtol=1e-5,
        atol=1e-5,
    )
    assert multi_tensor.all_finite(xs)
    average_(xs, ys, 0.9)
    for x, right in zip(xs, truth, strict=True):
        torch.testing.assert_close(x.double(), right, rtol=1e-6, atol=1e-6)
    multi_tensor.apply_(xs, ys, torch.ones(len(xs)), 0.5, 0.0)
    for x, y, right in zip(xs, ys, truth, strict=True):
        torch.testing.assert_close(x.double(), right - 0.5 * y.double(), rtol=1e-6, atol=1e-6)


@needs_native
@given(
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(16000, 17000)), min_size=1, max_size=12),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=2, max_size=2),
    threads=st.integers(1, 4),
    isa=st.sampled_from(["avx512", "avx2", "portable"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_random_lists_threads_and_instruction_sets(
    sizes: list[int], dtypes: list[torch.dtype], threads: int, isa: str, seed: int
) -> None:
    native = _native.module()
    usual, usual_threads = native.isa(), torch.get_num_threads()
    if isa not in native.isas():
        isa = "portable"
    torch.manual_seed(seed)
    xs = [torch.randn(n).to(dtypes[i % 2]) for i, n in enumerate(sizes)]
    ys = [torch.randn(n).to(dtypes[0]) for n in sizes]
    expected, scales = copies(xs), torch.rand(len(xs))
    ones, combined = torch.ones(len(xs)), copies(xs)
    reference.ema_combined_(expected, combined, ys, 0.75, ones, 0.0, None)
    reference.apply_(expected, ys, scales, 0.5, None, 0.125, None, None)
    try:
        native.select_isa(isa)
        torch.set_num_threads(threads)
        native_kernel.ema_combined_(xs, combined, ys, 0.75, ones, 0.0, None)
        native_kernel.apply_(xs, ys, scales, 0.5, None, 0.125, None, None)
        products = native_kernel.dot(xs, ys)
        assert native_kernel.all_finite(xs)
    finally:
        native.select_isa(usual)
        torch.set_num_threads(usual_threads)
    for x, right in zip(xs, expected, strict=True):
        # Each of two updates rounds numbers of size up to 5, and fuses a multiplication with an addition or does not.
        unit = torch.finfo(x.dtype).eps
        torch.testing.assert_close(x, right, rtol=2 * unit, atol=10 * unit)
    torch.testing.assert_close(products, reference.dot(xs, ys), rtol=1e-4, atol=1e-3)


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_combined_averages_past_the_caches(dtype: torch.dtype, isa: str) -> None:
    """Outputs of 16 MiB and more, which new memory does not align to a cache line where the averages are views."""
    native = _native.module()
    if isa not in native.isas():
        pytest.skip(f"this CPU does not run {isa}")
    sizes = [(16 << 20) // torch.finfo(dtype).bits * 8, 3, 12_345]
    xs, ys, shares = fill([(n,) for n in sizes], dtype), fill([(n,) for n in sizes], dtype), torch.rand(3)
    outputs = [torch.full((n + 1,), float("nan"), dtype=dtype) for n in sizes]
    expected, combined = copies(xs), copies(xs)
    reference.ema_combined_(expected, combined, ys, 0.75, shares, 0.5, None)
    lists = [[t.data_ptr() for t in tensors] for tensors in (xs, ys, [output[1:] for output in outputs])]
    kind, usual = native_type(native, dtype), native.isa()
    try:
        native.select_isa(isa)
        native.ema_combined(lists[0], kind, lists[1], kind, lists[2], sizes, 0.75, shares.tolist(), 0.5, 2)
    finally:
        native.select_isa(usual)
    unit = torch.finfo(dtype).eps
    for x, output, right, right_output in zip(xs, outputs, expected, combined, strict=True):
        torch.testing.assert_close(x, right, rtol=2 * unit, atol=4 * unit)
        torch.testing.assert_close(output[1:], right_output, rtol=2 * unit, atol=8 * unit)
        assert output[0].isnan()


@needs_native
def test_dot_has_the_same_bits_with_any_number_of_threads() -> None:
    xs, ys = fill([(100_003,), (7,), (33_000,)], torch.float32), fill([(100_003,), (7,), (33_000,)], torch.float32)
    usual = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2, 1):
            torch.set_num_threads(threads)
            results.append(native_kernel.dot(xs, ys))
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(result, results[0]) for result in results)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_updates_have_the_same_bits_when_the_number_of_threads_changes(dtype: torch.dtype) -> None:
    shapes = [(100_003,), (7,), (33_000,), (129, 65)]
    starts, gradients = fill(shapes, dtype), fill(shapes, dtype)
    usual = torch.get_num_threads()

    def updated(threads: list[int]) -> list[torch.Tensor]:
        parameters, averages = (
            copies(starts),
            [x.to(torch.float64 if dtype == torch.float64 else torch.float32) for x in starts],
        )
        averages = copies(averages)
        for count in threads:
            torch.set_num_threads(count)
            shares = torch.full((len(shapes),), 0.7, dtype=torch.float64)
            directions = multi_tensor.ema_combined_(averages, gradients, 0.9, shares, 0.1)
            average_(averages, gradients, 0.9)
            multi_tensor.apply_(parameters, directions, torch.rand(4, generator=torch.manual_seed(0)), 0.1, 0.01)
        return [*parameters, *averages]

    try:
        results = [updated(threads) for threads in ([1, 1, 1, 1], [2, 2, 2, 2], [1, 2, 3, 1], [3, 1, 2, 8])]
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_whoever_watches_the_dispatcher_sees_the_call(backend: str) -> None:
    params, steps, scales = fill([(3,), (4, 5)], torch.float32), fill([(3,), (4, 5)], torch.float32), torch.ones(2)
    expected = [param - 0.5 * step for param, step in zip(params, steps, strict=True)]
    with Operators() as found:
        multi_tensor.apply_(params, steps, scales, 0.5, 0.0)
    assert found.seen[:1] == ["lnb_kernels.multi_tensor_apply_.default"]
    torch.testing.assert_close(params, expected)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        multi_tensor.apply_(params, steps, scales, 0.5, 0.0)
    assert "lnb_kernels::multi_tensor_apply_" in {event.key for event in recorded.key_averages()}
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(param) for param in params]
        assert type(multi_tensor.dot(fakes, fakes)) is FakeTensor


def test_without_watchers_a_call_spares_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    consulted = []
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", lambda op, *args, **kwargs: consulted.append(op))
    x = fill([(3,)], torch.float32)
    torch.testing.assert_close(multi_tensor.dot(x, x), torch.stack([x[0].double().square().sum()]))
    assert not consulted


def test_version_counters_of_written_tensors_move(backend: str) -> None:
    xs, ys = fill([(3,), (4,)], torch.float32), fill([(3,), (4,)], torch.float32)
    versions = [x._version for x in xs]
    average_(xs, ys, 0.9)
    assert all(x._version > version for x, version in zip(xs, versions, strict=True))
    versions, read = [x._version for x in xs], [y._version for y in ys]
    multi_tensor.apply_(xs, ys, torch.ones(2), 0.1, 0.0)
    assert all(x._version > version for x, version in zip(xs, versions, strict=True))
    assert [y._version for y in ys] == read


def test_dot_adds_up_layers(backend: str) -> None:
    xs, ys = fill(SHAPES, torch.float32), fill(SHAPES, torch.float32)
    products = multi_tensor.dot(xs, ys)
    layers = [4, 0, 0, 4, 1, 1, 1, 0, 6]
    expected = [products[[i for i, own in enumerate(layers) if own == layer]].sum() for layer in range(7)]
    torch.testing.assert_close(multi_tensor.dot(xs, ys, layers), torch.stack(expected), rtol=1e-5, atol=1e-4)
    total = multi_tensor.dot(xs, ys, [0] * len(xs))
    torch.testing.assert_close(total, products.sum()[None], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_too_small_for_a_parameter_add_up_in_its_master(backend: str, dtype: torch.dtype) -> None:
    masters, ones = [torch.ones(9), torch.ones(2, 3).T], [torch.ones(9), torch.ones(3, 2)]
    params = [master.to(dtype) for master in masters]
    for _ in range(100):
        multi_tensor.apply_master_(masters, params, ones, torch.ones(2), 1e-3, 0.0)
    for master, param in zip(masters, params, strict=True):
        torch.testing.assert_close(master, torch.full_like(master, 0.9), rtol=0, atol=1e-5)
        assert torch.equal(param, master.to(dtype))


@pytest.mark.parametrize("name", ["all_finite", "ema_combined_", "dot", "apply_", "apply_master_"])
def test_opcheck(backend: str, name: str) -> None:
    xs, ys = fill([(3, 4), (5,), (0,)], torch.float32), fill([(3, 4), (5,), (0,)], torch.bfloat16)
    arguments = {
        "all_finite": (xs,),
        "ema_combined_": (xs, copies(xs), ys, 0.9, torch.ones(3), 0.5, torch.tensor(True)),
        "dot": (xs, ys),
        "apply_": (xs, ys, torch.ones(3), 0.1, None, 0.0, torch.tensor(0.1), None),
        "apply_master_": (xs, ys, copies(ys), torch.ones(3), 0.1, None, 0.0, None, None),
    }[name]
    torch.library.opcheck(getattr(torch.ops.lnb_kernels, "multi_tensor_" + name).default, arguments)


def test_compiled_function_updates_in_place() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def update(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
        average_(xs, ys, 0.5)
        return multi_tensor.dot(xs, ys)

    xs, ys = fill([(3,), (4,)], torch.float32), fill([(3,), (4,)], torch.float32)
    expected = [0.5 * x + 0.5 * y for x, y in zip(xs, ys, strict=True)]
    products = update(xs, ys)
    for x, right in zip(xs, expected, strict=True):
        torch.testing.assert_close(x, right)
    torch.testing.assert_close(
        products, torch.stack([(x.double() * y.double()).sum() for x, y in zip(expected, ys, strict=True)])
    )


A, B = torch.zeros(3), torch.ones(3)


def combine_into(out: list[Tensor]) -> list[Tensor]:
    return multi_tensor.ema_combined_([A], [B], 0.9, torch.ones(1), 0.0, out=out)


BAD_CALLS = [
    (lambda: average_(A, [B], 0.9), TypeError, "averages must be a list"),
    (lambda: average_([A], [B, B], 0.9), ValueError, "values has 2 tensors"),
    (lambda: average_([A], [torch.ones(4)], 0.9), ValueError, r"values\[0\] has shape \(4,\)"),
    (lambda: average_([A], [B.int()], 0.9), TypeError, r"values\[0\] has dtype torch.int32"),
    (lambda: average_([A], [B.to_sparse()], 0.9), TypeError, "layout"),
    (lambda: average_([A], [B.to("meta")], 0.9), ValueError, "meta"),
    (lambda: average_([A], [B], 1.5), ValueError, "beta=1.5"),
    (lambda: average_([A], [B], "0.9"), TypeError, "beta"),
    (lambda: average_([A], [B], 0.9, torch.ones(())), TypeError, "ok must be"),
    (lambda: average_([A], [B], 0.9, torch.ones(2, dtype=torch.bool)), ValueError, "ok has shape"),
    (lambda: average_([A, A], [B, B], 0.9), ValueError, "twice"),
    (lambda: average_([torch.zeros(1).expand(3)], [B], 0.9), ValueError, "share memory"),
    (
        lambda: average_([torch.zeros(5).as_strided((3, 3), (1, 1))], [torch.ones(3, 3)], 0.9),
        ValueError,
        "share",
    ),
    (lambda: multi_tensor.dot([A, A.to("meta")], [B, B]), ValueError, r"xs\[1\] is on meta"),
    (lambda: average_([A.clone().requires_grad_()], [B], 0.9), RuntimeError, "no_grad"),
    (lambda: multi_tensor.ema_combined_([A], [B], 0.9, torch.ones(2), 0.0), ValueError, "shares has shape"),
    (lambda: multi_tensor.ema_combined_([A], [B], 0.9, torch.ones(1), float("inf")), ValueError, "take=inf"),
    (lambda: multi_tensor.ema_combined_([A], [B], 0.9, torch.ones(1), B), TypeError, "take must be a number"),
    (lambda: combine_into([B, B.clone()]), ValueError, "out has 2 tensors and averages has 1"),
    (lambda: combine_into([B[:2]]), ValueError, r"out\[0\] has shape \(2,\)"),
    (lambda: combine_into([B.double()]), TypeError, r"out\[0\] has dtype torch.float64; allowed is averages\[0\]'s"),
    (lambda: combine_into([B[:1].expand(B.shape)]), ValueError, r"out\[0\] has entries that share memory"),
    (lambda: multi_tensor.apply_([A], [B], torch.ones(2), 0.1, 0.0), ValueError, "scales has shape"),
    (lambda: multi_tensor.apply_([A], [B], torch.ones(1), float("nan"), 0.0), ValueError, "lr=nan"),
    (lambda: multi_tensor.apply_([A], [B], torch.ones(1), 0.1, torch.ones(2)), ValueError, "weight_decay has shape"),
    (lambda: multi_tensor.apply_([A], [B], torch.ones(1), True, 0.0), TypeError, "lr must be"),
    (
        lambda: multi_tensor.apply_master_([A.half()], [B], [B], torch.ones(1), 0.1, 0.0),
        TypeError,
        r"masters\[0\] has dtype",
    ),
    (lambda: multi_tensor.apply_master_([A], [B, B], [B], torch.ones(1), 0.1, 0.0), ValueError, "params has 2 tensors"),
    (lambda: multi_tensor.dot([A], [B], [1]), ValueError, r"ints in \[0, 1\)"),
    (lambda: multi_tensor.dot([A], [B], [0, 0]), ValueError, "layers has 2 entries"),
    (lambda: multi_tensor.dot([A], [B], [0.5]), TypeError, "layers must be"),
    (lambda: multi_tensor.dot([A], [None]), TypeError, r"ys\[0\] must be a torch.Tensor"),
    (lambda: multi_tensor.all_finite([A, 1.0]), TypeError, r"tensors\[1\]"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_input_is_named_and_changes_nothing(backend: str, call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(A, torch.zeros(3))
    assert torch.equal(B, torch.ones(3))


@needs_native
@pytest.mark.parametrize(
    ("xs", "ys", "message"),
    [
        (lambda m: [m[:10], m[5:15]], lambda m: [torch.ones(10), torch.ones(10)], r"averages\[1\] and averages\[0\]"),
        (lambda m: [m[:10]], lambda m: [m[9:19]], r"values\[0\] and averages\[0\]"),
        (lambda m: [m[:10]], lambda m: [m[:10]], "overlap"),
        (lambda m: [m[:10], m[50:60]], lambda m: [torch.ones(10).half(), m[0:10]], r"values\[1\]"),
    ],
)
def test_written_memory_that_overlaps_is_refused_before_any_write(xs, ys, message: str) -> None:
    memory = torch.zeros(100)
    lk.set_backend("native")
    try:
        with pytest.raises(ValueError, match=message):
            average_(xs(memory), ys(memory), 0.5)
    finally:
        lk.set_backend("auto")
    assert torch.equal(memory, torch.zeros(100))


@needs_native
def test_outputs_that_overlap_are_refused_before_any_write(backend: str) -> None:
    """With the averages, the values, or one another."""
    if backend == "reference":
        return
    averages, values, shares = [torch.zeros(8), torch.zeros(8)], [torch.ones(8), torch.ones(8)], torch.ones(2)
    memory = torch.zeros(12)
    for out, named in (
        ([averages[1], torch.zeros(8)], r"out\[0\] and averages\[1\]|averages\[1\] and out\[0\]"),
        ([torch.zeros(8), values[0]], r"out\[1\] and values\[0\]|values\[0\] and out\[1\]"),
        ([memory[:8], memory[4:]], r"out\[1\] and out\[0\]"),
    ):
        with pytest.raises(ValueError, match=named):
            multi_tensor.ema_combined_(averages, values, 0.5, shares, 0.5, out=out)
        assert not torch.cat(averages).any()
        assert bool((torch.cat(values) == 1).all())


def test_masters_and_parameters_that_overlap_are_refused_before_any_write() -> None:
    memory, ones = torch.zeros(20), torch.ones(8, dtype=torch.bfloat16)
    views = memory.view(torch.bfloat16)
    calls = {
        r"params\[0\]": ([memory[:8]], [views[8:16]], [torch.ones(8)]),
        r"params\[1\] and params\[0\]": ([torch.zeros(8), torch.zeros(8)], [views[:8], views[4:12]], [ones, ones]),
        r"directions\[0\]": ([torch.zeros(8)], [views[:8]], [views[4:12]]),
    }
    lk.set_backend("native")
    try:
        for message, (masters, params, directions) in calls.items():
            with pytest.raises(ValueError, match=message):
                multi_tensor.apply_master_(masters, params, directions, torch.ones(len(masters)), 0.5, 0.0)
            assert not any(master.any() for master in masters)
    finally:
        lk.set_backend("auto")
    assert torch.equal(memory, torch.zeros(20))


@pytest.mark.parametrize("backend", [WHERE_NATIVE, "cuda"], indirect=True)
@pytest.mark.parametrize("op", ["ema_combined_", "apply_", "apply_master_"])
def test_a_bad_tensor_of_a_later_launch_is_refused_before_the_first(backend: str, op: str) -> None:
    """Two dtypes are two launches; the second has memory that is not aligned."""
    crooked = torch.frombuffer(bytearray(40), dtype=torch.float32, offset=1, count=8)
    wide = torch.frombuffer(bytearray(80), dtype=torch.float64, offset=1, count=8)
    halves = [torch.zeros(8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.float16)]
    values, factors = [torch.ones(8), crooked], torch.ones(2)
    masters = [torch.zeros(8), torch.zeros(8)]
    calls = {
        "ema_combined_": ([masters[0], wide], [torch.ones(8), torch.ones(8, dtype=torch.float64)], 0.5, factors, 0.0),
        "apply_": (halves, values, factors, 0.5, 0.0),
        "apply_master_": (masters, halves, values, factors, 0.5, 0.0),
    }
    with pytest.raises(ValueError, match=r"\[1\] is not aligned to its dtype"):
        getattr(multi_tensor, op)(*calls[op])
    assert not any(tensor.any() for tensor in (*halves, *masters))


def test_adjacent_views_of_one_buffer_are_no_overlap(backend: str) -> None:
    memory = torch.zeros(30)
    average_([memory[:10], memory[10:20], memory[20:]], [torch.ones(10)] * 3, 0.0)
    assert torch.equal(memory, torch.ones(30))


@needs_native
@pytest.mark.parametrize(
    ("address", "size", "message"),
    [
        (0, 4, "null pointer"),
        (1026, 4, "not aligned"),
        (1024, -1, "negative size, -1"),
        (1024, 2**61, "more entries than can be counted"),
    ],
)
def test_bindings_refuse_addresses_that_would_crash(address: int, size: int, message: str) -> None:
    native = _native.module()
    kind = native.Type.FLOAT32
    with pytest.raises(ValueError, match=message):
        native.dot([address], kind, [address], kind, [size], 1)
    with pytest.raises(ValueError, match="one size per address"):
        native.dot([1024, 1024], kind, [1024, 1024], kind, [0], 1)
    with pytest.raises(ValueError, match="no kernel for this pair"):
        native.dot([], kind, [], native.Type.FLOAT64, [], 1)
    with pytest.raises(ValueError, match="allowed are"):
        native.select_isa("mmx")


@needs_native
def test_sums_reach_beyond_two_to_the_31_elements() -> None:
    """Of the memory only the last page exists; the others are the system's page of zeros."""
    size = 2**31 + 17
    with mmap.mmap(
        -1, 2 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    ) as memory:
        x = torch.frombuffer(memory, dtype=torch.bfloat16)
        x[-1] = 3.0
        assert native_kernel.dot([x], [x]) == 9.0
        del x


@needs_native
@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    size = 2**31 + 17
    x = torch.zeros(size, dtype=torch.bfloat16)
    y = torch.zeros(size, dtype=torch.bfloat16)
    y[-1] = 2.0
    native_kernel.apply_([x], [y], torch.tensor([-0.5]), 1.0, None, 0.0, None, None)
    assert x[-1] == 1.0
    assert native_kernel.dot([x], [y]) == 2.0
