"""``lk.conv2d_second_moment`` and ``lk.conv2d_cov_matvec`` against patches from ``F.unfold`` in float64."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import DTYPES, assert_close_to_reference, layouts
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import lnb_kernels as lk
from lnb_kernels.conv2d import reference
from lnb_kernels.conv2d.geometry import geometry
from lnb_kernels.conv2d.patches import conv2d_second_moment_by_patches
from lnb_kernels.conv2d.shifts import conv2d_second_moment_by_shifts, has_interior

Pair = tuple[int, int]


def patch_rows(
    x: torch.Tensor, kernel: Pair, stride: Pair, padding: Pair | str, dilation: Pair, groups: int
) -> torch.Tensor:
    """``[p 1]`` for every output position: ``[groups, B * positions, D + 1]``, in the dtype of ``x``."""
    if x.dim() == 3:
        x = x.unsqueeze(0)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        pads = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    elif padding == "valid":
        pads = [0, 0, 0, 0]
    else:
        pads = [padding[1], padding[1], padding[0], padding[0]]  # type: ignore[list-item]
    columns = F.unfold(F.pad(x, pads), kernel, dilation, 0, stride)
    rows = columns.unflatten(1, (groups, columns.shape[1] // groups)).permute(1, 0, 3, 2).flatten(1, 2)
    return torch.cat((rows, rows.new_ones(*rows.shape[:2], 1)), 2)


def gram(rows: torch.Tensor) -> torch.Tensor:
    return rows.mT @ rows


# kernel, stride, padding, dilation, groups
GEOMETRIES: list[tuple[Pair, Pair, Pair | str, Pair, int]] = [
    ((3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 3), (1, 1), "same", (1, 1), 2),
    ((3, 3), (1, 1), "valid", (1, 1), 1),
    ((1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((1, 1), (1, 1), (2, 0), (1, 1), 4),
    ((5, 5), (1, 1), (2, 2), (1, 1), 1),
    ((2, 4), (1, 1), "same", (1, 1), 1),
    ((2, 4), (1, 1), "same", (2, 1), 2),
    ((4, 3), (1, 1), (1, 2), (1, 1), 4),
    ((3, 3), (1, 1), (9, 7), (1, 1), 1),
    ((3, 2), (1, 1), (1, 3), (2, 3), 1),
    ((3, 3), (1, 1), (1, 1), (2, 2), 2),
    ((7, 7), (1, 1), (3, 3), (1, 1), 1),
    ((3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((3, 2), (2, 3), (1, 0), (1, 2), 2),
    ((2, 2), (2, 2), (0, 0), (1, 1), 1),
    ((1, 1), (2, 2), (0, 0), (1, 1), 4),
    ((3, 3), (1, 1), (1, 1), (1, 1), 4),
]


@pytest.mark.usefixtures("both_backends")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), GEOMETRIES)
@pytest.mark.parametrize("shape", [(3, 4, 13, 11), (4, 9, 9), (1, 4, 24, 40)], ids=str)
def test_matches_patches_in_float64(
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    dtype: torch.dtype,
) -> None:
    values = (torch.randn(shape) + 0.3).to(dtype)
    args = (kernel, stride, padding, dilation, groups)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    truth, plain = (gram(patch_rows(values.to(kind), *args)) for kind in (torch.float64, wide))
    for name, x in layouts(values):
        s = lk.conv2d_second_moment(x, *args)
        assert s.dtype == wide, name
        assert_close_to_reference(s, truth, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("images", [(19, 1), (6, 3), (33, 5)], ids=str)
def test_many_images_of_few_channels(images: Pair, dtype: torch.dtype) -> None:
    """Samples are multiplied 16 at a time, and those that are left over: as many as there are."""
    values = (torch.randn(*images, 9, 8) + 0.3).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for args in (GEOMETRIES[i] for i in (0, 6, 10, 12)):
        truth, plain = (gram(patch_rows(values.to(kind), *args)) for kind in (torch.float64, wide))
        for _, x in layouts(values):
            assert_close_to_reference(lk.conv2d_second_moment(x, *args), truth, plain)


@pytest.mark.usefixtures("both_backends")
@pytest.mark.parametrize("channels", [1, 7, 123])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 7), (2, 3), (7, 23)], ids=str)
def test_odd_sizes(size: Pair, channels: int) -> None:
    """Images smaller than the kernel included: then no pixel is seen by every tap."""
    x = torch.randn(2, channels, *size)
    args = ((3, 3), (1, 1), (1, 1), (1, 1), 1)
    truth = gram(patch_rows(x.double(), *args))
    assert_close_to_reference(lk.conv2d_second_moment(x, *args), truth, gram(patch_rows(x, *args)))


@pytest.mark.usefixtures("both_backends")
@pytest.mark.parametrize("shape", [(8, 64, 20, 20), (2, 16, 70, 66), (9, 3, 64, 64)], ids=str)
def test_long_sums_keep_their_digits(shape: tuple[int, ...]) -> None:
    """Positive features, so that sums grow with the number of pixels: the worst case for float32."""
    x = torch.randn(shape).relu()
    args = ((3, 3), (1, 1), (1, 1), (1, 1), 1)
    truth = gram(patch_rows(x.double(), *args))
    assert_close_to_reference(lk.conv2d_second_moment(x, *args), truth, gram(patch_rows(x, *args)))


dimensions = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(
    kernel=dimensions,
    padding=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    groups=st.sampled_from([1, 2, 4]),
    batch=st.integers(0, 3),
)
def test_both_routes_are_exact_wherever_they_apply(
    kernel: Pair, padding: Pair, dilation: Pair, size: Pair, groups: int, batch: int
) -> None:
    conv = geometry("test", kernel, 1, padding, dilation, groups)
    assume(min(conv.output(*size)) >= 1)
    x = torch.randn(batch, 4, *size, dtype=torch.float64)
    truth = gram(patch_rows(x, kernel, (1, 1), padding, dilation, groups))
    torch.testing.assert_close(conv2d_second_moment_by_patches(x, conv), truth)
    if has_interior(conv, *size):
        torch.testing.assert_close(conv2d_second_moment_by_shifts(x, conv), truth)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_adds_over_the_batch_and_is_symmetric_and_positive(batch: int, cut: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, 2, 6, 5, dtype=torch.float64)
    s = lk.conv2d_second_moment(x, 3, padding=1)
    parts = [lk.conv2d_second_moment(part, 3, padding=1) for part in (x[:cut], x[cut:])]
    torch.testing.assert_close(parts[0] + parts[1], s)
    torch.testing.assert_close(s, s.mT)
    assert torch.linalg.eigvalsh(s).min().item() >= -1e-10 * max(1.0, s.abs().max().item())
    torch.testing.assert_close(lk.conv2d_second_moment(x.flip(0), 3, padding=1), s)


def test_pointwise_convolution_is_a_linear_layer() -> None:
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(lk.conv2d_second_moment(x, 1)[0], lk.second_moment(x.movedim(1, -1)))


def test_an_empty_batch_gives_zeros() -> None:
    x = torch.empty(0, 4, 8, 8)
    for stride in (1, 2):
        assert torch.equal(lk.conv2d_second_moment(x, 3, stride, 1, 1, 2), torch.zeros(2, 19, 19))


def test_stride_one_builds_no_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("patches were built")

    x, code = torch.randn(2, 4, 20, 20), geometry("test", 3, 1, 1, 1, 1).encode()
    expected = reference.conv2d_second_moment(x, code)
    monkeypatch.setattr(F, "unfold", forbidden)
    assert torch.equal(reference.conv2d_second_moment(x, code), expected)
    with pytest.raises(AssertionError, match="patches were built"):
        lk.conv2d_second_moment(x, 3, stride=2, padding=1)


@pytest.mark.usefixtures("both_backends")
def test_autocast_does_not_reach_the_statistics() -> None:
    x, v = torch.randn(2, 4, 9, 9), torch.randn(3, 37)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s, product = lk.conv2d_second_moment(x, 3, padding=1), lk.conv2d_cov_matvec(x, v, 3, padding=1)
    assert torch.equal(s, lk.conv2d_second_moment(x, 3, padding=1))
    assert torch.equal(product, lk.conv2d_cov_matvec(x, v, 3, padding=1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), GEOMETRIES)
def test_product_matches_patches_in_float64(
    kernel: Pair, stride: Pair, padding: Pair | str, dilation: Pair, groups: int, dtype: torch.dtype, bias: bool
) -> None:
    args = (kernel, stride, padding, dilation, groups)
    x = torch.randn(3, 4, 13, 11).to(dtype)
    d = 4 // groups * kernel[0] * kernel[1]
    v = torch.randn(8, d + bias).to(dtype)

    def expected(kind: torch.dtype) -> torch.Tensor:
        s = gram(patch_rows(x.to(kind), *args))  # [groups, D+1, D+1]
        a = s[:, : d + bias, : d + bias] / s[0, -1, -1]
        product = (v.to(kind).view(groups, -1, d + bias) @ a).flatten(0, 1)
        product[:, :d] += 0.3 * v[:, :d].to(kind)
        return product

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    product = lk.conv2d_cov_matvec(x, v, *args, 0.3)
    assert product.dtype == dtype
    assert_close_to_reference(product, expected(torch.float64), expected(wide).to(dtype))


def test_product_without_a_batch_is_the_ridge() -> None:
    v = torch.randn(2, 37)
    product = lk.conv2d_cov_matvec(torch.empty(0, 4, 6, 6), v, 3, ridge=0.5)
    assert torch.equal(product[:, :36], 0.5 * v[:, :36])
    assert torch.equal(product[:, 36], torch.zeros(2))


def test_product_of_a_strided_single_tap_stays_within_memory_where_channels_are_last() -> None:
    """In a process of its own: PyTorch's weight gradient of such a convolution corrupts the heap, and aborts sooner or later."""
    program = """
import torch
import lnb_kernels as lk
x = torch.randn(3, 3, 10, 12).contiguous(memory_format=torch.channels_last)
v = torch.randn(3, 4)
for _ in range(50):
    found = lk.conv2d_cov_matvec(x, v, 1, (1, 2))
torch.testing.assert_close(found, lk.cov_matvec(x[..., ::2].movedim(1, -1), v))
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "done\n", done.stderr[-2000:]


@pytest.mark.parametrize("groups", [1, 2])
def test_product_of_no_vectors_is_empty(groups: int) -> None:
    product = lk.conv2d_cov_matvec(torch.randn(2, 4, 6, 6), torch.empty(0, 36 // groups + 1), 3, groups=groups)
    assert product.shape == (0, 36 // groups + 1)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [((2, 3), 1, "same", 1, 1), ((2, 2), 1, (1, 0), (1, 2), 2), ((3, 2), 2, 1, 1, 1)],
)
def test_derivatives(kernel: Pair, stride: int, padding: Any, dilation: Any, groups: int) -> None:
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    args = (kernel, stride, padding, dilation, groups)
    assert gradcheck(lambda x: lk.conv2d_second_moment(x, *args), (x,))
    assert gradgradcheck(lambda x: lk.conv2d_second_moment(x, *args), (x,))
    d = 2 // groups * kernel[0] * kernel[1]
    for bias in (0, 1):
        v = torch.randn(2, d + bias, dtype=torch.float64, requires_grad=True)
        for pair in ((x, v), (x.detach(), v), (x, v.detach())):
            assert gradcheck(lambda x, v: lk.conv2d_cov_matvec(x, v, *args, 0.3), pair)
            assert gradgradcheck(lambda x, v: lk.conv2d_cov_matvec(x, v, *args, 0.3), pair)


@pytest.mark.parametrize(("dtype", "stride", "padding"), [(torch.float32, 1, "same"), (torch.bfloat16, 2, 1)], ids=str)
def test_opcheck(dtype: torch.dtype, stride: int, padding: int | str) -> None:
    ops = torch.ops.lnb_kernels
    x, v = torch.randn(2, 4, 6, 5).to(dtype).requires_grad_(), torch.randn(6, 13).to(dtype).requires_grad_()
    code = geometry("test", (2, 3), stride, padding, 1, 2).encode()
    opcheck(ops.conv2d_second_moment.default, (x, code))
    opcheck(ops.conv2d_cov_matvec.default, (x, v, 0.3, code))
    opcheck(ops.conv2d_cov_matvec.default, (x.detach(), v.detach().t().contiguous().t(), 0.0, code))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, r"kernel_size=0 is not allowed; it must be an int or two ints, each >= 1"),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size=\(3, 3, 3\) is not allowed"),
        ({"kernel_size": "3"}, TypeError, r"kernel_size must be an int or a pair of ints, got '3'"),
        ({"stride": 0}, ValueError, r"stride=0 is not allowed"),
        ({"padding": -1}, ValueError, r"padding=-1 is not allowed"),
        ({"padding": "full"}, ValueError, r"padding='full' is not allowed; it must be int, pair, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, ValueError, r"padding='same' is not allowed with stride=2"),
        ({"kernel_size": (True, 3)}, TypeError, r"kernel_size must be an int or a pair of ints, got \(True, 3\)"),
        ({"stride": 2**64}, ValueError, r"stride=18446744073709551616 is not allowed; .* each below 2\*\*31"),
        ({"padding": 2**31 - 1}, ValueError, r"output positions of 36 entries; allowed are at most 2\*\*60 positions"),
        ({"kernel_size": 2**30, "padding": 2**29}, ValueError, r"and entries of all their products"),
        ({"dilation": 1.5}, TypeError, r"dilation must be an int or a pair of ints, got 1.5"),
        ({"groups": 3}, ValueError, r"groups=3 does not divide the 4 channels of x"),
        ({"groups": 0}, ValueError, r"groups=0 is not allowed; it must be an int >= 1"),
        ({"groups": 2.0}, TypeError, r"groups must be an int >= 1, got 2.0"),
        ({"x": torch.ones(8, 8)}, ValueError, r"x has shape \(8, 8\); allowed are \[B, C, H, W\] and \[C, H, W\]"),
        ({"x": torch.ones(4, 8, 8, dtype=torch.int64)}, TypeError, r"x has dtype torch.int64"),
        ({"x": torch.ones(1, 4, 2, 8)}, ValueError, r"is smaller than the extent \(3, 3\) of the kernel"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) and "x" not in value else "",
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(1, 4, 8, 8), "kernel_size": 3} | change
    with pytest.raises(error, match=message):
        lk.conv2d_second_moment(**arguments)
    with pytest.raises(error, match=message):
        lk.conv2d_cov_matvec(v=torch.ones(2, 36), **arguments)


@pytest.mark.parametrize(("blocks", "error"), [(5, ValueError), (0, ValueError), (12, None), (2.0, TypeError)])
def test_blocks_that_cut_nothing_evenly_are_named(blocks: Any, error: type[Exception] | None) -> None:
    x = torch.ones(1, 4, 8, 8)
    if error is None:
        assert lk.conv2d_second_moment(x, 3, blocks=blocks).shape == (12, 4, 4)
        return
    with pytest.raises(error, match=rf"conv2d_second_moment: blocks.*{blocks}"):
        lk.conv2d_second_moment(x, 3, blocks=blocks)


def test_bad_vectors_are_named() -> None:
    x = torch.ones(1, 4, 8, 8)
    for v in (torch.ones(2, 35), torch.ones(36)):
        with pytest.raises(ValueError, match=r"v has shape .*; allowed is \[m, D=36\] or \[m, D\+1=37\]"):
            lk.conv2d_cov_matvec(x, v, 3)
    with pytest.raises(ValueError, match=r"m a multiple of groups=2"):
        lk.conv2d_cov_matvec(x, torch.ones(3, 18), 3, groups=2)
