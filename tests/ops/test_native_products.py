"""The native CPU second moments of rows and patches: every instruction set, dtype and layout against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import assert_close_to_reference, layouts, with_ones

from lnb_kernels import _native
from lnb_kernels.conv2d import native_kernel as conv_kernel
from lnb_kernels.conv2d.geometry import Geometry, geometry
from lnb_kernels.second_moment.native_kernel import second_moment

pytestmark = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [(1, 1), (2, 16), (57, 7), (129, 48), (300, 123), (1030, 193), (3000, 17), (700, 401)]


def plain(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.float()
    return rows.mT @ rows


def patches(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``[p 1]`` of every output position, ``[groups, N, D + 1]`` in float64."""
    columns = F.unfold(F.pad(x.double(), conv.padding), conv.kernel, conv.dilation)
    rows = columns.unflatten(1, (conv.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return torch.cat((rows, rows.new_ones(*rows.shape[:2], 1)), 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(isa: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        values = (torch.randn(size) + 0.5).to(dtype)
        rows = with_ones(values)
        for _, x in layouts(values):
            s = second_moment(x)
            assert_close_to_reference(s, rows.t() @ rows, plain(rows))
            assert torch.equal(s, s.t())
            assert s[-1, -1] == size[0]


@pytest.mark.parametrize("product", [None, torch.bfloat16], ids=str)
def test_blocks_of_features(isa: str, product: torch.dtype | None) -> None:
    """The same bits as from each block's columns alone."""
    for x in (torch.randn(500, 96), torch.randn(3, 7, 30).bfloat16(), torch.randn(40, 60)[:, ::2], torch.randn(0, 6)):
        alone = torch.stack([second_moment(part.contiguous(), None, product) for part in x.tensor_split(3, -1)])
        assert torch.equal(second_moment(x, None, product, 3), alone)


def test_rows_rounded_on_their_way(isa: str) -> None:
    """The same bits as from rows that were rounded before, wherever those are multiplied in the same way."""
    for size in SIZES:
        x = torch.randn(size) * 3 + 1
        rows = with_ones(x.bfloat16())
        assert_close_to_reference(second_moment(x, product=torch.bfloat16), rows.t() @ rows, plain(rows))
        assert torch.equal(second_moment(x, product=torch.bfloat16), second_moment(x.bfloat16()))
    half = with_ones(x.half())
    assert_close_to_reference(second_moment(x, product=torch.float16), half.t() @ half, plain(half))


def test_strided_rows_are_read_in_place(isa: str) -> None:
    """Every third row, and a column range: nothing between them is touched, nor are the rows copied."""
    wide = torch.full((3 * 500, 90), float("nan"))
    view = wide[1::3, 5:82]
    view.copy_(torch.randn(500, 77))
    rows = with_ones(view)
    assert_close_to_reference(second_moment(view), rows.t() @ rows, plain(rows))
    repeated = torch.randn(1, 33).expand(200, 33)
    rows = with_ones(repeated)
    assert_close_to_reference(second_moment(repeated), rows.t() @ rows, plain(rows))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_not_a_number_and_infinity_come_through(isa: str, dtype: torch.dtype) -> None:
    x = torch.randn(300, 70).to(dtype)
    x[299, 33] = float("nan")
    x[7, 2] = float("inf")
    s = second_moment(x)
    assert bool(s[33].isnan().all())
    assert bool(s[:, 33].isnan().all())
    assert s[2, 2] == float("inf")
    assert s[2, -1] == float("inf")
    touched = torch.zeros(71, 71, dtype=torch.bool)
    touched[[2, 33]] = True
    assert bool(s[~(touched | touched.t())].isfinite().all())
    images = torch.randn(3, 5, 8, 7).to(dtype)
    images[2, 4, 3, 3] = float("nan")
    moment = conv_kernel.conv2d_second_moment(images, geometry("test", 3, 1, 1, 1, 1).encode())[0]
    assert bool(moment[36:45, 36:46].isnan().all())
    assert bool(moment[:36, :36].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    native, usual = _native.module(), torch.get_num_threads()
    x, image, few = (torch.randn(size).to(dtype) for size in ((3000, 65), (6, 70, 9, 8), (37, 3, 9, 8)))
    code, depthwise = (geometry("test", 3, 1, 1, 1, groups).encode() for groups in (1, 70))
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            given = (image, code), (image, depthwise), (few, code)
            moments = [conv_kernel.conv2d_second_moment(*each) for each in given]
            results.append((second_moment(x), *moments))
    finally:
        torch.set_num_threads(usual)
    assert native.threading() in ("openmp", "pool")
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


CONVOLUTIONS = [
    ((4, 8, 9, 7), 3, 1, 1, 1),
    ((3, 20, 12, 11), 3, 0, 1, 1),
    ((2, 40, 8, 8), (3, 5), (1, 2), 1, 2),
    ((3, 70, 6, 6), 3, 1, 1, 1),
    ((1, 3, 5, 5), (5, 4), (4, 3), (1, 2), 1),
    ((2, 4, 13, 11), 3, (9, 7), 1, 1),
    ((3, 130, 4, 5), 1, 0, 1, 1),
    ((2, 6, 16, 300), 7, 3, 1, 1),
    ((1, 5, 2, 600), 3, 1, (1, 2), 1),
    ((9, 34, 7, 9), 3, 1, 1, 17),
    ((2, 40, 6, 5), (7, 3), (3, 1), (1, 2), 40),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kernel", "padding", "dilation", "groups"), CONVOLUTIONS, ids=str)
def test_patches(
    isa: str, shape: tuple[int, ...], kernel: int, padding: int, dilation: int, groups: int, dtype: torch.dtype
) -> None:
    conv = geometry("test", kernel, 1, padding, dilation, groups)
    values = (torch.randn(shape) + 0.3).to(dtype)
    rows = patches(values, conv)
    truth = rows.mT @ rows
    for x in (values, values.to(memory_format=torch.channels_last), values.mT.contiguous().mT):
        s = conv_kernel.conv2d_second_moment(x, conv.encode())
        assert_close_to_reference(s, truth, plain(rows))
        assert torch.equal(s, s.mT)
    if dtype == torch.float32:
        rounded = patches(values.bfloat16(), conv)
        s = conv_kernel.conv2d_second_moment(values, conv.encode(), torch.bfloat16)
        assert_close_to_reference(s, rounded.mT @ rounded, plain(rounded))


@settings(max_examples=100, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    groups=st.sampled_from([1, 2, 3, 6]),
    batch=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31 - 1),
)
def test_patches_of_any_geometry(kernel, padding, dilation, size, groups, batch, dtype, seed) -> None:
    """Small integers, so that every sum is exact: borders that were missed or counted twice show as a difference."""
    conv = geometry("test", kernel, 1, padding, dilation, groups)
    assume(min(conv.output(*size)) >= 1)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (batch, 6, *size), generator=generator).to(dtype)
    rows = patches(x, conv)
    assert torch.equal(conv_kernel.conv2d_second_moment(x, conv.encode()).double(), rows.mT @ rows)


def test_large_kernels_of_one_channel_go_by_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden:
        def __getattr__(self, name: str) -> None:
            raise AssertionError(f"the native module's {name} was used")

    monkeypatch.setattr(_native, "module", Forbidden)
    conv = geometry("test", 13, 1, 6, 1, 4)
    x = torch.randn(2, 4, 6, 6)
    rows = patches(x, conv)
    assert_close_to_reference(conv_kernel.conv2d_second_moment(x, conv.encode()), rows.mT @ rows, plain(rows))


def test_what_would_crash_is_refused() -> None:
    native = _native.module()
    x, s = torch.randn(4, 5), torch.empty(6, 6)
    kind = native.Type.FLOAT32
    for arguments, message in [
        ((x.data_ptr(), native.Type.FLOAT64, 4, 5, 5, False, s.data_ptr(), 1), "no kernel for float64"),
        ((x.data_ptr(), kind, -4, 5, 5, False, s.data_ptr(), 1), "negative size"),
        ((0, kind, 4, 5, 5, False, s.data_ptr(), 1), "x has entries but a null pointer"),
        ((x.data_ptr() + 1, kind, 4, 5, 5, False, s.data_ptr(), 1), "x is not aligned to its dtype"),
        ((x.data_ptr(), kind, 4, 5, 5, False, 0, 1), "s has entries but a null pointer"),
        ((x.data_ptr(), kind, 4, 5, 5, False, s.data_ptr() + 2, 1), "s is not aligned"),
        ((x.data_ptr(), kind, 4, 5, 5, False, x.data_ptr() + 40, 1), r"x\[0\] overlap|s\[0\] and x\[0\]"),
        ((x.data_ptr(), kind, 2**40, 2**40, 5, False, s.data_ptr(), 1), "x has more entries than can be counted"),
        ((0, kind, 0, 2**40, 5, False, s.data_ptr(), 1), "s has more entries than can be counted"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.second_moment(*arguments)
    image, axis = (1, 2, 2, 5), (1, 1, 0, 2)
    strides = (20, 10, 5, 1)
    for rows, groups, out, message in [
        ((0, 1, 0, 2), 1, s, "no such convolution"),
        (axis, 3, s, "groups must divide"),
        ((1, 1, 0, 2**62), 1, s, "the output has more entries than can be counted"),
        ((2**40, 1, 0, 2), 1, s, "s has more entries than can be counted"),
        (axis, 1, x, "overlap in memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.conv_moment(x.data_ptr(), kind, image, strides, rows, (1, 1, 0, 5), groups, False, out.data_ptr(), 1)
