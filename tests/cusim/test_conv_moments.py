"""Second moments of convolutions: the CUDA kernel against patches from ``F.unfold`` in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cusim.simulated import ORDERS, Simulator, cuda_kernels_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close_to_reference

import lnb_kernels as lk
from lnb_kernels._triton.arch import INTERPRETED
from lnb_kernels.conv2d import cuda_kernel

Pair = tuple[int, int]


def moment(x: torch.Tensor, kernel: Pair, stride: Pair, padding: Pair, groups: int) -> torch.Tensor:
    columns = F.unfold(x, kernel, 1, padding, stride)
    rows = columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    rows = torch.cat((rows, rows.new_ones(*rows.shape[:2], 1)), 2)
    return rows.mT @ rows


def image(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
    x = (torch.randn(shape) + 0.3).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def check(simulated: Simulator, x: torch.Tensor, *conv: Any, served: bool = True) -> None:
    kernel, stride, padding, groups = conv
    before = len(simulated.launches)
    s = lk.conv2d_second_moment(x, kernel, stride, padding, groups=groups)
    assert simulated.launches[before:] == (["conv_moments"] if served else [])
    assert not served or torch.equal(s, s.mT)
    assert_close_to_reference(s, moment(x.double(), *conv), moment(x.float(), *conv))


# Image, kernel, stride, padding, groups: each takes another way through the cuts.
SHAPES: list[tuple[tuple[int, ...], Pair, Pair, Pair, int]] = [
    ((2, 32, 9, 8), (3, 3), (1, 1), (1, 1), 2),  # 144 entries: all tiles; two images of a stage
    ((3, 3, 17, 16), (3, 3), (1, 1), (1, 1), 1),  # a stem; rows at odd multiples of 16 bytes
    ((1, 3, 24, 24), (7, 7), (2, 2), (3, 3), 3),  # a stem's blocks; rows that overlap by a stride
    ((20, 4, 5, 7), (3, 3), (1, 1), (1, 1), 4),  # more images than a stage has
    ((1, 2, 3, 304), (3, 3), (1, 1), (1, 1), 1),  # wider than a stage
    ((2, 128, 4, 4), (1, 1), (2, 2), (0, 0), 1),  # rows that no output reads
    ((7, 1, 3, 128), (3, 3), (1, 1), (1, 1), 1),  # so many thread blocks that these are added in two turns
    ((2, 4, 5, 6), (2, 4), (1, 3), (0, 5), 2),  # columns of padding alone
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "groups"), SHAPES)
def test_matches_patches_in_float64(
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    groups: int,
) -> None:
    """A thread block takes one stage of the work, or on a GPU of one multiprocessor many."""
    if order != "forward":
        monkeypatch.setattr(cuda_kernel, "arch_of", lambda device: dataclasses.replace(INTERPRETED, multiprocessors=1))
    with cuda_kernels_on_cpu() as simulated:
        simulated.set(order)
        dtype = torch.float16 if order == "reverse" else torch.bfloat16
        check(simulated, image(shape, dtype), kernel, stride, padding, groups)


def test_same_bits_in_every_order() -> None:
    x = image((7, 1, 3, 128), torch.bfloat16)
    with cuda_kernels_on_cpu() as simulated:
        found = []
        for order in ORDERS:
            simulated.set(order)
            found.append(lk.conv2d_second_moment(x, 3, padding=1))
    assert all(torch.equal(s, found[0]) for s in found)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (3, 3), (15, 5)])
def test_channels_side_by_side(channels: int, groups: int) -> None:
    with cuda_kernels_on_cpu() as simulated:
        x = image((2, channels, 8, 8), torch.bfloat16, channels_last=True)
        check(simulated, x, (3, 3), (1, 1), (1, 1), groups)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=25, deadline=None)
@given(
    kernel=sizes,
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    size=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    groups=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 4),
    first=st.integers(0, 1),
    channels_last=st.booleans(),
)
def test_any_convolution_and_view(
    kernel: Pair, stride: Pair, padding: Pair, size: Pair, groups: int, batch: int, first: int, channels_last: bool
) -> None:
    """Views too: of some channels of wider images, whose other entries are NaN, at addresses that are aligned or not."""
    wide = torch.full((batch + 1, 8, *size), float("nan"), dtype=torch.bfloat16)
    wide = wide.contiguous(memory_format=torch.channels_last) if channels_last else wide
    x = wide[:batch, 2 * first : 4 + 2 * first].copy_(image((batch, 4, *size), torch.bfloat16))
    with cuda_kernels_on_cpu() as simulated:
        served = (kernel, stride) != ((1, 1), (1, 1)) and x.data_ptr() % 16 == 0
        check(simulated, x, kernel, stride, padding, groups, served=served)


def test_what_the_kernel_does_not_take_goes_elsewhere() -> None:
    conv = ((3, 3), (1, 1), (1, 1), 1)
    with cuda_kernels_on_cpu() as simulated:
        check(simulated, image((2, 16, 8, 8), torch.bfloat16, channels_last=True), *conv, served=False)
        check(simulated, image((2, 3, 8, 8), torch.float32), *conv, served=False)
        check(simulated, image((1, 3, 5, 5), torch.bfloat16), *conv, served=False)  # no whole vectors at the end
        check(simulated, image((2, 17, 8, 8), torch.bfloat16), *conv, served=False)  # 153 entries


def test_bytes_moved() -> None:
    """Each row of the image is read by whole vectors, once for every strip of outputs that needs it: two here, of four rows."""
    with cuda_kernels_on_cpu() as simulated:
        x = image((2, 16, 8, 64), torch.bfloat16)
        lk.conv2d_second_moment(x, 3, padding=1)
        image_bytes = 2 * x.numel() * (5 + 5) // 8
        partials, result, counter = 2 * 4 * 54 * 256, 4 * 145 * 145, 4
        # The diagonal is written twice.
        assert simulated.traffic == (image_bytes + partials, partials + result + 4 * 144 + counter)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": 8}, "x is not aligned to 16 bytes"),
        ({"x": 0}, "x has entries but a null pointer"),
        ({"counters": 0}, "counters has entries but a null pointer"),
        ({"s": 0}, "s has entries but a null pointer"),
        ({"type": "FLOAT32"}, "no kernel for this dtype"),
        ({"channels": 0}, "channels is 0; allowed are 1 to 2147483647"),
        ({"channels": 17}, "no kernel for a convolution of this shape"),
        ({"row_stride": -1}, "row_stride is -1"),
        ({"pixel_stride": 65}, "pixel_stride is 65"),
        ({"pad_top": 2**31 - 1}, "rows that the outputs reach"),
    ],
)
def test_bindings_refuse_what_would_crash(changed: dict[str, Any], message: str) -> None:
    names = (
        "image_stride channel_stride row_stride pixel_stride batch groups channels height width out_height out_width"
    )
    names += " kernel_height kernel_width step_y step_x pad_top pad_left"
    fields = dict(zip(names.split(), (64, 64, 8, 1, 1, 1, 1, 8, 8, 8, 8, 3, 3, 1, 1, 1, 1), strict=True))
    fields |= {name: value for name, value in changed.items() if name in fields}
    given = {"x": 16, "type": "BFLOAT16", "partials": 16, "counters": 16, "s": 16} | changed
    with cuda_kernels_on_cpu() as simulated:
        kind = getattr(simulated.module.Type, given["type"])
        with pytest.raises(ValueError, match=message):
            simulated.module.conv_moments(
                given["x"], kind, tuple(fields.values()), 4, given["partials"], given["counters"], given["s"], (0, 0)
            )
        simulated.set(fail_launch=0)
        with pytest.raises(RuntimeError, match="conv_moments failed"):
            lk.conv2d_second_moment(image((1, 1, 8, 8), torch.bfloat16), 3)
