"""``multi_tensor.squared_row_norms`` by every backend against float64: dtypes, layouts, empty rows; checks; determinism."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import DTYPES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lnb_kernels import _native, multi_tensor
from lnb_kernels.multi_tensor import native_kernel
from lnb_kernels.multi_tensor.grouping import native_type

needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
SHAPES: list[tuple[tuple[int, ...], int]] = [  # with numbers of rows
    ((3, 5), 3), ((), 1), ((17,), 1), ((17,), 17), ((4, 3, 2, 2), 4), ((4, 3, 2, 2), 12), ((7, 0), 7), ((0, 7), 0),
    ((0,), 5), ((2, 16384), 2), ((3, 16385), 3), ((50001,), 7143), ((50001,), 1), ((1000, 33), 1000),
]  # fmt: skip


def truth(tensors: list[Tensor], rows: list[int]) -> Tensor:
    """Sums that round once, row by row."""
    norms: list[float] = []
    for tensor, count in zip(tensors, rows, strict=True):
        entries = tensor.double().flatten().tolist()
        columns = len(entries) // max(1, count)
        norms += [math.fsum(e * e for e in entries[i * columns : (i + 1) * columns]) for i in range(count)]
    return torch.tensor(norms, dtype=torch.float64)


def check(tensors: list[Tensor], rows: list[int]) -> None:
    norms = multi_tensor.squared_row_norms(tensors, rows)
    assert norms.dtype == torch.float64
    torch.testing.assert_close(norms, truth(tensors, rows), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values(backend: str, dtype: torch.dtype) -> None:
    check([torch.randn(shape).to(dtype) for shape, _ in SHAPES], [count for _, count in SHAPES])


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_on_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    tensors, rows = [torch.randn(shape).to(dtype) for shape, _ in SHAPES], [count for _, count in SHAPES]
    found = native_kernel.squared_row_norms(tensors, rows)
    torch.testing.assert_close(found, truth(tensors, rows), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(DTYPES, 2)))
def test_dtypes_may_be_mixed(backend: str, one: torch.dtype, other: torch.dtype) -> None:
    check([torch.randn(6, 7).to(one), torch.randn(40).to(other), torch.randn(5, 3).to(one)], [6, 8, 5])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from(DTYPES)), min_size=1, max_size=6))
def test_any_shapes_together(backend: str, sizes: list[tuple[int, int, torch.dtype]]) -> None:
    check([torch.randn(m, d).to(dtype) for m, d, dtype in sizes], [m for m, *_ in sizes])


def layouts() -> dict[str, Tensor]:
    """Matrices of 4 rows, none of which lies in memory as it is read."""
    x = torch.randn(4, 6)
    return {
        "transposed": x.t().contiguous().t(),
        "strided": torch.randn(4, 12)[:, ::2],
        "apart": torch.randn(4, 9)[:, :6],
        "expanded": torch.randn(1, 6).expand(4, 6),
        "negated": torch._neg_view(x),
        "imaginary": torch.complex(x, x + 1).conj().imag,
        "channels last": torch.randn(4, 3, 2, 5).contiguous(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("name", layouts())
def test_layouts_count_as_their_values(backend: str, name: str) -> None:
    value, dense = layouts()[name], torch.randn(4, 6)
    for rows in (4, 8, 1):
        check([value], [rows])
        check([dense, value, dense], [4, rows, 2])


def test_no_tensors_and_no_rows(backend: str) -> None:
    assert multi_tensor.squared_row_norms([], []).shape == (0,)
    empty = multi_tensor.squared_row_norms([torch.empty(0, 3)], [0])
    assert (empty.shape, empty.dtype) == ((0,), torch.float64)
    assert multi_tensor.squared_row_norms([torch.empty(0, 3)], [2]).tolist() == [0, 0]


def test_squares_of_float32_entries_neither_overflow_nor_vanish(backend: str) -> None:
    check([torch.tensor([3e38, -3e38]), torch.tensor([1e-45, 1e-38])], [2, 2])
    check([torch.full((4, 100), 3e38), torch.full((4, 100), 1e-45)], [4, 4])


def test_a_row_alone_is_not_finite(backend: str) -> None:
    x = torch.randn(5, 8)
    x[1, 2], x[3, 0] = torch.nan, -torch.inf
    norms = multi_tensor.squared_row_norms([x], [5])
    assert norms.isfinite().tolist() == [True, False, True, False, True]
    assert norms[3] == torch.inf


@needs_native
def test_bits_depend_neither_on_threads_nor_on_the_other_tensors() -> None:
    tensors, rows = [torch.randn(shape) for shape, _ in SHAPES], [count for _, count in SHAPES]
    alone = torch.cat([multi_tensor.squared_row_norms([x], [n]) for x, n in zip(tensors, rows, strict=True)])
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            assert torch.equal(multi_tensor.squared_row_norms(tensors, rows), alone)
        finally:
            torch.set_num_threads(threads)


def test_arguments_are_left_as_they_are(backend: str) -> None:
    x = torch.randn(5, 8)
    before, version = x.clone(), x._version
    multi_tensor.squared_row_norms([x], [5])
    assert torch.equal(x, before)
    assert x._version == version


def test_parameters_that_require_a_gradient_are_read(backend: str) -> None:
    x = torch.randn(5, 8, requires_grad=True)
    norms = multi_tensor.squared_row_norms([x], [5])
    assert not norms.requires_grad
    torch.testing.assert_close(norms, truth([x.detach()], [5]))


def test_opcheck() -> None:
    tensors = [torch.randn(4, 3), torch.randn(2, 3, dtype=torch.float64).t(), torch.randn(6).bfloat16()]
    torch.library.opcheck(torch.ops.lnb_kernels.multi_tensor_squared_row_norms.default, (tensors, [4, 3, 1]))


def test_fake_and_meta_tensors() -> None:
    with FakeTensorMode():
        norms = multi_tensor.squared_row_norms([torch.empty(4, 3), torch.empty(7)], [4, 1])
    assert (norms.shape, norms.dtype) == ((5,), torch.float64)
    assert multi_tensor.squared_row_norms([torch.empty(4, 3, device="meta")], [2]).shape == (2,)


X = torch.randn(4, 6)
BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (X, [4], TypeError, "tensors must be a list of tensors, got Tensor"),
    ([X.long()], [4], TypeError, r"tensors\[0\]"),
    ([X, "x"], [4, 4], TypeError, r"tensors\[1\]"),
    ([X, X.to_sparse()], [4, 4], TypeError, r"tensors\[1\]"),
    ([X, X.to("meta")], [4, 4], ValueError, r"tensors\[1\]"),
    ([X], 4, TypeError, "rows must be a list of ints, got 4"),
    ([X], None, TypeError, "rows must be a list of ints, got None"),
    ([X], torch.tensor([4]), TypeError, "rows must be a list of ints"),
    ([X], [4.0], TypeError, r"rows must be a list of ints, got \[4.0\]"),
    ([X], [True], TypeError, r"rows must be a list of ints, got \[True\]"),
    ([X], [], ValueError, "rows has 0 entries, allowed is one for each of tensors, 1"),
    ([], [1], ValueError, "rows has 1 entries, allowed is one for each of tensors, 0"),
    (
        [X, X],
        [4, 5],
        ValueError,
        r"rows\[1\] is 5; allowed are numbers of equal rows of the 24 entries of tensors\[1\]",
    ),
    ([X], [-4], ValueError, r"rows\[0\] is -4"),
    ([X], [0], ValueError, r"rows\[0\] is 0"),
    ([X], [48], ValueError, r"rows\[0\] is 48"),
]


@pytest.mark.parametrize(("tensors", "rows", "error", "words"), BAD)
def test_bad_arguments_are_named(backend: str, tensors: Any, rows: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^multi_tensor.squared_row_norms: {words}"):
        multi_tensor.squared_row_norms(tensors, rows)


@needs_native
def test_addresses_that_would_crash_are_refused() -> None:
    native = _native.module()
    kind, norms = native_type(native, torch.float32), torch.empty(4, dtype=torch.float64)
    x, out = X.data_ptr(), norms.data_ptr()
    for arguments, message in (
        (([0], kind, [4], [6], out), r"tensors\[0\] has entries but a null pointer"),
        (([x + 2], kind, [4], [6], out), r"tensors\[0\] is not aligned"),
        (([x], kind, [4], [6], 0), "norms has entries but a null pointer"),
        (([x], kind, [4, 4], [6], out), "one per tensor"),
        (([x], kind, [-4], [6], out), "tensors"),
        (([x], kind, [1 << 40], [1 << 40], out), "more entries than can be counted"),
    ):
        with pytest.raises(ValueError, match=message):
            native.squared_row_norms(*arguments, 1)
