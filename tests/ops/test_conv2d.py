"""``lk.conv2d``: what ``F.conv2d`` gives, bit for bit, and moments as the gradients of its probes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from support import DTYPES, Operators
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import lnb_kernels as lk
from lnb_kernels.conv2d.geometry import geometry

WHOLE = (None, 1, None)  # every image, in its own dtype

# kernel, stride, padding, dilation, groups
GEOMETRIES: list[tuple[Any, ...]] = [
    ((3, 3), 1, 1, 1, 1),
    ((3, 3), 1, "same", 1, 2),
    ((2, 4), 1, "same", 1, 1),
    ((2, 4), 1, "same", (1, 2), 4),
    ((3, 2), 2, (1, 0), 1, 1),
    ((1, 1), 1, 0, 1, 1),
    ((1, 1), 2, "valid", 1, 1),
    ((5, 3), 1, 2, 2, 1),
    ((5, 3), 1, (8, 1), 4, 1),
]


def probes(
    kernel: tuple[int, int], groups: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    size = 4 // groups * kernel[0] * kernel[1] + 1
    return torch.zeros(groups, size, size, dtype=dtype).requires_grad_(), torch.zeros(
        3, 4, dtype=dtype
    ).requires_grad_()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry_", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 9, 8), (4, 9, 8), (1, 4, 33, 20), (0, 4, 9, 8)], ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_output_and_gradients_are_those_of_plain_conv2d(
    shape: tuple[int, ...], memory: torch.memory_format, geometry_: tuple[Any, ...], dtype: torch.dtype
) -> None:
    kernel, stride, padding, dilation, groups = geometry_
    x = torch.randn(shape).to(dtype)
    if x.dim() == 4:
        x = x.contiguous(memory_format=memory)
    weight, b = torch.randn(8, 4 // groups, *kernel).to(dtype), torch.randn(8).to(dtype)
    for bias in (b, None):
        results = []
        for live in ((False, False), (True, False), (False, True), (True, True)):
            leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, b)]
            given = [p if on else None for p, on in zip(probes(kernel, groups), live, strict=True)]
            y = lk.conv2d(*leaves[:2], None if bias is None else leaves[2], stride, padding, dilation, groups, *given)
            torch.manual_seed(1)
            used = leaves if bias is not None else leaves[:2]
            results.append([y.detach(), *torch.autograd.grad(y, used, torch.randn(y.shape).to(dtype))])
        for result in results[1:]:
            for plain, ours in zip(results[0], result, strict=True):
                assert torch.equal(plain, ours)
                assert plain.stride() == ours.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry_", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 9, 8), (4, 9, 8)], ids=str)
def test_gradients_of_the_probes_are_the_moments(
    shape: tuple[int, ...], geometry_: tuple[Any, ...], dtype: torch.dtype
) -> None:
    kernel, stride, padding, dilation, groups = geometry_
    x, weight = torch.randn(shape).to(dtype), torch.randn(8, 4 // groups, *kernel).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    patch_probe, channel_probe = probes(kernel, groups, wide)
    y = lk.conv2d(x, weight, None, stride, padding, dilation, groups, patch_probe, channel_probe)
    s, channels = torch.autograd.grad(y, (patch_probe, channel_probe), torch.full_like(y, float("nan")))
    torch.testing.assert_close(s, lk.conv2d_second_moment(x, *geometry_), rtol=1e-6, atol=1e-5)
    rows = x.double().movedim(-3, -1).reshape(-1, 4)
    expected = torch.stack((rows.sum(0), rows.square().sum(0), torch.full((4,), rows.shape[0], dtype=torch.float64)))
    torch.testing.assert_close(channels.double(), expected, rtol=1e-6, atol=1e-5)
    # Of channels; then of the rows of the kernel, and of parts of these, which may see padding alone.
    of_rows = 4 * kernel[0]
    cut = (of_rows, of_rows * (2 if kernel[1] % 2 == 0 else kernel[1])) if dtype == torch.float64 else ()
    for blocks in (2, 4, *cut):
        if blocks % groups == 0:
            size = 4 * kernel[0] * kernel[1] // blocks
            smaller = torch.zeros(blocks, size + 1, size + 1, dtype=wide, requires_grad=True)
            y = lk.conv2d(x, weight, None, stride, padding, dilation, groups, smaller)
            (s,) = torch.autograd.grad(y, smaller, torch.full_like(y, float("nan")))
            assert torch.equal(s, lk.conv2d_second_moment(x, *geometry_, blocks=blocks // groups))
            whole = lk.conv2d_second_moment(x, kernel, stride, padding, dilation, 1)[0]
            ones = whole.shape[0] - 1
            for block, moment in enumerate(s):
                index = [*range(block * size, (block + 1) * size), ones]
                torch.testing.assert_close(moment, whole[index][:, index], rtol=1e-5, atol=1e-4)


def test_gradients_of_the_probes_add_up() -> None:
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    s, channels = probes((3, 3), 1)
    x1, x2 = torch.randn(2, 4, 6, 5), torch.randn(1, 4, 6, 5)
    (1024 * lk.conv2d(x1, weight, None, 1, 1, probe=s, channel_probe=channels).sum()).backward()
    hidden = lk.conv2d(x2, weight, None, 1, 1, probe=s, channel_probe=channels)
    lk.conv2d(hidden, weight, None, 1, 1, probe=s, channel_probe=channels).sum().backward()
    assert s.grad is not None
    assert channels.grad is not None
    inputs = (x1, x2, hidden.detach())
    torch.testing.assert_close(s.grad, sum(lk.conv2d_second_moment(x, 3, 1, 1) for x in inputs))
    torch.testing.assert_close(channels.grad[0], sum(x.sum((0, 2, 3)) for x in inputs))
    assert (channels.grad[2] == 4 * 30).all()


def test_without_a_live_probe_there_is_no_extra_operator() -> None:
    x, weight, bias = torch.randn(2, 4, 6, 5), torch.randn(8, 4, 3, 3, requires_grad=True), torch.randn(8)

    def operators(*live: torch.Tensor | None) -> list[str]:
        with Operators() as found:
            y = (
                lk.conv2d(x, weight, bias, 1, 1, 1, 1, *live)
                if live
                else torch.nn.functional.conv2d(x, weight, bias, 1, 1, 1, 1)
            )
            torch.autograd.grad(y.sum(), weight)
        return found.seen

    off = [p.detach() for p in probes((3, 3), 1)]
    assert operators(None, None) == operators(*off) == operators()


@pytest.mark.parametrize("wanted", list(product((True, False), repeat=3)), ids=str)
def test_only_wanted_gradients_are_computed(wanted: tuple[bool, bool, bool]) -> None:
    x, weight, bias = (
        torch.randn(shape).requires_grad_(want)
        for shape, want in zip(((2, 4, 6, 5), (8, 4, 3, 3), (8,)), wanted, strict=True)
    )
    s, channels = probes((3, 3), 1)
    y = lk.conv2d(x, weight, bias, 1, 1, probe=s)
    with Operators() as found:
        y.backward(torch.ones_like(y))
    assert [t.grad is not None for t in (x, weight, bias, s)] == [*wanted, True]
    assert found.seen.count("lnb_kernels.conv2d_backward.default") == 1
    code = geometry("test", 3, 1, 1, 1, 1).encode()
    grads = torch.ops.lnb_kernels.conv2d_backward(
        y.detach(), x.detach(), weight.detach(), code, 60, [*wanted, False, True], *WHOLE, 1
    )
    assert len(grads) == sum(wanted) + 1
    assert grads[-1].shape == channels.shape


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_derivatives() -> None:
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 4, 5, 4), (4, 2, 2, 3), (4,))
    )
    for blocks in (2, 4):
        given = probes((2, 3), blocks, torch.float64)
        layer = lambda *args, given=given: lk.conv2d(*args, 1, "same", 1, 2, *given)  # noqa: E731
        assert gradcheck(layer, (x, weight, bias))
        assert gradgradcheck(layer, (x, weight, bias))


@pytest.mark.parametrize("blocks", [1, 2, 12])
def test_the_moments_can_be_differentiated(blocks: int) -> None:
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    size = 36 // blocks + 1
    s, channels = (
        torch.zeros(blocks, size, size, dtype=torch.float64, requires_grad=True),
        probes((3, 3), 1, x.dtype)[1],
    )
    y = lk.conv2d(x, torch.randn(2, 4, 3, 3, dtype=torch.float64), None, 1, 1, probe=s, channel_probe=channels)
    moments = torch.autograd.grad(y.sum(), (s, channels), create_graph=True)
    directions = [torch.randn_like(m) for m in moments]
    (ours,) = torch.autograd.grad(sum((m * d).sum() for m, d in zip(moments, directions, strict=True)), x)
    direct = (lk.conv2d_second_moment(x, 3, 1, 1, blocks=blocks) * directions[0]).sum()
    direct = direct + (x.sum((0, 2, 3)) * directions[1][0] + x.square().sum((0, 2, 3)) * directions[1][1]).sum()
    (expected,) = torch.autograd.grad(direct, x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("dtype", "how"),
    [(torch.bfloat16, WHOLE), (torch.float32, (torch.tensor(0.6), 2, torch.bfloat16))],
    ids=["whole", "sampled"],
)
def test_opcheck(dtype: torch.dtype, how: tuple[Any, ...]) -> None:
    ops = torch.ops.lnb_kernels
    x, weight, bias = (torch.randn(s).to(dtype).requires_grad_() for s in ((2, 4, 6, 5), (4, 2, 2, 3), (4,)))
    code = geometry("test", (2, 3), 1, 1, 1, 2).encode()
    for blocks in (2, 4):
        opcheck(ops.conv2d.default, (x, weight, bias, *probes((2, 3), blocks), code, 60, *how))
    opcheck(ops.conv2d.default, (x.detach(), weight, None, None, probes((2, 3), 2)[1], code, 60, *how))
    y = torch.nn.functional.conv2d(x, weight, bias, 1, 1, 1, 2).detach()
    for mask, blocks in (([True] * 5, 4), ([False, True, False, True, False], 8), ([False] * 5, 4)):
        opcheck(ops.conv2d_backward.default, (torch.randn_like(y), x, weight, code, 60, mask, *how, blocks))


def test_bad_arguments_are_named() -> None:
    x, weight = torch.randn(2, 4, 6, 5), torch.randn(8, 4, 3, 3)
    s, channels = probes((3, 3), 1)
    with pytest.raises(ValueError, match=r"conv2d: probe has shape \(37, 37\), allowed is \(1, 37, 37\)"):
        lk.conv2d(x, weight, probe=torch.zeros(37, 37, requires_grad=True))
    with pytest.raises(ValueError, match=r"conv2d: probe has shape \(3, 13, 13\), allowed is \(1, 37, 37\)"):
        lk.conv2d(x, weight, probe=torch.zeros(3, 13, 13, requires_grad=True))
    with pytest.raises(ValueError, match=r"conv2d: probe has shape \(2, 37, 37\), allowed is \(2, 19, 19\)"):
        lk.conv2d(x, weight, probe=torch.zeros(2, 37, 37, requires_grad=True))
    with pytest.raises(ValueError, match=r"conv2d: channel_probe has shape \(3, 5\), allowed is \(3, 4\)"):
        lk.conv2d(x, weight, channel_probe=torch.zeros(3, 5, requires_grad=True))
    with pytest.raises(ValueError, match=r"conv2d: padding='full' is not allowed"):
        lk.conv2d(x, weight, padding="full", probe=s)
    with pytest.raises(ValueError, match=r"conv2d: padding='same' is not allowed with stride=2"):
        lk.conv2d(x, weight, stride=2, padding="same", channel_probe=channels)
    with pytest.raises(ValueError, match=r"conv2d: x has shape \(6, 5\); allowed are"):
        lk.conv2d(x[0, 0], weight, probe=s)
    with pytest.raises(ValueError, match=r"conv2d: groups=3 does not divide the 4 channels of x"):
        lk.conv2d(x, weight, groups=3, channel_probe=channels)
