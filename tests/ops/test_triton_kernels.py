"""The Triton kernels against the references, in the interpreter or on a GPU."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pcg_support import check
from support import assert_close_to_reference, layouts
from triton_support import DEVICE, DTYPES, triton_interpreter

from lnb_kernels import _backend
from lnb_kernels._triton import gram_launch, offsets
from lnb_kernels._triton.arch import ARCHS
from lnb_kernels._triton.gram_prediction import fused_backward_pays
from lnb_kernels.conv2d import reference as conv_reference
from lnb_kernels.conv2d import triton_kernel as conv_kernel
from lnb_kernels.conv2d.blocks import block_moments
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.patches import conv2d_second_moment_by_patches
from lnb_kernels.conv2d.shifts import has_interior
from lnb_kernels.conv2d.triton_patches import second_moment_by_patches
from lnb_kernels.conv2d.triton_shifts import second_moment_by_shifts
from lnb_kernels.cov_matvec import reference as cov_reference
from lnb_kernels.cov_matvec import triton_kernel as cov_kernel
from lnb_kernels.linear import reference as linear_reference
from lnb_kernels.linear import triton_kernel as linear_kernel
from lnb_kernels.pcg import triton_kernel as pcg_kernel
from lnb_kernels.second_moment import reference as moment_reference
from lnb_kernels.second_moment import triton_kernel as moment_kernel


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def test_bf16_of_the_interpreter_rounds_as_torch_does() -> None:
    values = torch.cat((torch.randn(1000), torch.tensor([0.0, -0.0, float("inf"), 1.00390625, 3.4e38])))
    bits = triton_interpreter.narrow(values.numpy())
    expected = values.to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(triton_interpreter.widen(bits)), expected.float())


def test_offsets_are_widened_before_the_multiply() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def store_offset(out_ptr, index, stride, offset64: tl.constexpr):
        tl.store(out_ptr, offset64(index, stride))

    out = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    store_offset[(1,)](out, 2**31 - 2, 8191, offsets.offset64)
    assert out.item() == (2**31 - 2) * 8191


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 7), (123, 123), (50, 300), (507, 40)])
def test_second_moment(n: int, d: int, dtype: torch.dtype) -> None:
    x, w = rand(n, d, dtype=dtype), rand(n).abs()
    for args in ((x,), (x, w)):
        actual = moment_kernel.second_moment(*args)
        truth = moment_reference.second_moment(*(value.double() for value in args))
        assert_close_to_reference(actual, truth, moment_reference.second_moment(*args))
        assert torch.equal(actual, actual.t())


def test_second_moment_of_every_layout_and_of_nothing() -> None:
    values = torch.randn(37, 21)
    expected = moment_reference.second_moment(values)
    for name, x in layouts(values):
        torch.testing.assert_close(moment_kernel.second_moment(x.to(DEVICE)).cpu(), expected, msg=name)
    assert torch.equal(moment_kernel.second_moment(rand(0, 5)), torch.zeros(6, 6, device=DEVICE))
    assert moment_kernel.second_moment(rand(4, 0)).item() == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_second_moment_of_blocks(dtype: torch.dtype) -> None:
    """One launch for all blocks; and where there can be none, the same by parts."""
    for n, d, blocks, weights in ((70, 30, 3, None), (70, 30, 3, rand(70).abs()), (0, 30, 3, None), (5, 7, 7, None)):
        x = rand(n, d, dtype=dtype)
        actual = moment_kernel.second_moment(x, weights, None, blocks)
        wide = None if weights is None else weights.double()
        truth = moment_reference.second_moment(x.double(), wide, None, blocks)
        assert_close_to_reference(actual, truth, moment_reference.second_moment(x, weights, None, blocks))
        assert torch.equal(actual, actual.mT)


def test_row_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = rand(70, 19), rand(70)
    monkeypatch.setattr(gram_launch, "MAX_SAMPLES", 32)
    actual = moment_kernel.second_moment(x, weights)
    torch.testing.assert_close(actual, moment_reference.second_moment(x, weights))


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 90))
def test_second_moment_adds_over_rows_in_any_order(n: int, d: int, cut: int) -> None:
    x = rand(n, d)
    whole = moment_kernel.second_moment(x)
    assert torch.equal(whole, whole.t())
    parts = moment_kernel.second_moment(x[:cut]) + moment_kernel.second_moment(x[cut:])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moment_kernel.second_moment(x[torch.randperm(n)]), whole, rtol=1e-4, atol=1e-4)
    assert torch.linalg.eigvalsh(whole.double()).min() >= -1e-4 * whole.norm()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("n", [1, 1000, 2**31 - 2**17])
@pytest.mark.parametrize("d", [8, 784, 8192])
def test_launch_geometry_covers_every_row_once(arch: str, n: int, d: int) -> None:
    plan = gram_launch.gram_plan(n, d, d, 2, ARCHS[arch])
    assert plan.samples_per_split % plan.block_n == 0
    assert (plan.splits - 1) * plan.samples_per_split < n <= plan.splits * plan.samples_per_split
    tail = plan.tail
    assert plan.head + tail.groups * tail.tiles == plan.tiles
    if tail.groups:
        assert tail.steps == -(-n // plan.block_n)
        assert (tail.shares - 1) * tail.share < tail.tiles * tail.steps <= tail.shares * tail.share
    assert 4 * plan.partials * plan.elements <= gram_launch.WORKSPACE_BYTES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "m"), [(1, 1, 1), (7, 1, 5), (9, 6, 1), (507, 7, 3), (123, 140, 33)])
def test_linear_backward(n: int, d: int, m: int, dtype: torch.dtype) -> None:
    grad, x, weight = rand(n, m, dtype=dtype), rand(n, d, dtype=dtype), rand(m, d, dtype=dtype)
    for g in (grad, grad.t().contiguous().t()):
        actual = linear_kernel.linear_backward(g, x, weight, [True] * 4)
        plain = linear_reference.linear_backward(grad, x, weight, [True] * 4)
        truth = linear_reference.linear_backward(grad.double(), x.double(), weight.double(), [True] * 4)
        for got, reference, exact in zip(actual, plain, truth, strict=True):
            assert_close_to_reference(got, exact, reference)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "blocks", "last"),
    [((16, 8), 8, 0, 6, True), ((16, 8), 8, 3, 12, False), ((3, 2), 4, 1, 9, False), ((3, 2), 4, 1, 18, False)],
    ids=str,
)
def test_blocks_of_a_channels_taps(kernel: tuple[int, int], stride: int, padding: int, blocks: int, last: bool) -> None:
    """Rows of a kernel, and parts of a row, from views of the images."""
    conv = Geometry(kernel, (stride, stride), (padding,) * 4, (1, 1), 3)
    x = rand(2, 3, 26, 18)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    actual = block_moments(x, conv, blocks, conv_kernel.conv2d_second_moment)
    plain, truth = (
        conv_reference.conv2d_second_moment(wide, conv.regrouped(3).encode()) for wide in (x.cpu(), x.cpu().double())
    )
    whole = plain.shape[-1] - 1
    size = whole * 3 // blocks
    for block, moment in enumerate(actual):
        channel, part = divmod(block, blocks // 3)
        index = [*range(part * size, (part + 1) * size), whole]
        assert_close_to_reference(moment, truth[channel][index][:, index], plain[channel][index][:, index])


def test_the_backward_pass_is_fused_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow layers are bound by the pass over their rows; of wide ones with many rows the library's tiles are better."""
    for arch in ARCHS.values():
        for itemsize in (2, 4):
            pays = partial(fused_backward_pays, itemsize=itemsize, arch=arch)
            assert all(pays(n, 128, 512) and pays(n, 16, 16) for n in (64, 16384, 1 << 20)), arch.name
    assert not any(fused_backward_pays(1 << 17, 4096, 4096, 4, ARCHS[name]) for name in ("sm_80", "sm_90", "sm_100"))
    assert [fused_backward_pays(n, 768, 3072, 2, ARCHS["sm_90"]) for n in (256, 4096, 1 << 17)] == [True, True, False]
    assert not fused_backward_pays(1 << 14, 2048, 2048, 4, ARCHS["sm_90"])
    assert fused_backward_pays(1 << 14, 2048, 2048, 2, ARCHS["sm_90"])  # with the tall tiles of 16-bit rows
    grad, x, weight = rand(40, 5), rand(40, 7), rand(5, 7)
    fused = linear_kernel.linear_backward(grad, x, weight, [True] * 4)
    monkeypatch.setattr(linear_kernel, "fused_backward_pays", lambda *arguments: False)
    monkeypatch.setattr(linear_kernel, "fused_backward", None)
    apart = linear_kernel.linear_backward(grad, x, weight, [True] * 4)
    for one, other in zip(fused, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "d", "m"), [(1, 1, 1), (7, 7, 3), (123, 123, 20), (1, 507, 1), (507, 1, 7), (1300, 70, 10)]
)
@pytest.mark.parametrize("bias", [0, 1])
def test_cov_matvec(n: int, d: int, m: int, bias: int, dtype: torch.dtype) -> None:
    x, v = rand(n, d, dtype=dtype), rand(m, d + bias, dtype=dtype)
    actual = cov_kernel.cov_matvec(x, v, 0.3)
    truth = cov_reference.cov_matvec(x.double(), v.double(), 0.3)
    assert_close_to_reference(actual, truth, cov_reference.cov_matvec(x, v, 0.3))


@pytest.mark.parametrize(("scope", "one_launch"), [("layer", False), ("neuron", False), ("neuron", True)])
@pytest.mark.parametrize(("lead", "m", "d"), [((), 1, 1), ((), 5, 7), ((2,), 20, 33), ((), 3, 123), ((2, 2), 17, 12)])
def test_pcg(
    lead: tuple[int, ...], m: int, d: int, scope: str, one_launch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pcg_kernel, "one_launch_pays", lambda *_: one_launch)
    x = rand(*lead, 3 * d + 5, d) + 0.3
    rows = torch.cat((x, torch.ones_like(x[..., :1])), -1)
    for bias, warm, arrow, iterations in [
        (1, True, True, 2),
        (0, True, True, 2),
        (1, False, False, 2),
        (1, False, True, 0),
    ]:
        g = rand(*lead, m, d + bias)
        tensors = {
            "s": rows.mT @ rows, "g": g, "h0": torch.randn_like(g) if warm else None,
            "mu": x.mean(-2) if arrow else None, "var": x.var(-2) if arrow else None,
        }  # fmt: skip
        layer_dims = 3 if scope == "layer" and len(lead) == 2 else 2
        check(pcg_kernel.pcg, tensors, iterations, 0.1, scope, layer_dims, orders=4)


GEOMETRIES = [
    (2, 3, 6, 5, Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)),
    (2, 4, 6, 5, Geometry((3, 3), (2, 1), (1, 0, 2, 1), (1, 2), 2)),
    (2, 4, 7, 7, Geometry((3, 2), (1, 1), (1, 0, 2, 1), (2, 1), 2)),
    (2, 6, 6, 6, Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6)),
    (2, 4, 6, 6, Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)),
    (1, 7, 4, 9, Geometry((2, 4), (1, 1), (1, 0, 3, 0), (1, 1), 1)),
    (3, 1, 1, 1, Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)),
    (1, 2, 9, 7, Geometry((3, 3), (3, 2), (2, 2, 0, 1), (1, 1), 1)),
    (3, 6, 4, 2, Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2)),
    (2, 4, 5, 7, Geometry((1, 1), (2, 3), (0, 0, 0, 0), (1, 1), 2)),
]


HALVES = {torch.bfloat16: (0, 1, 3, 4), torch.float16: (2, 3, 4, 7)}
"""Of these geometries, second moments are also tested in 16 bits: patches, shifts, depthwise kernels and pixels."""


def geometries_of_dtypes() -> list[tuple[int, int, int, int, Geometry, torch.dtype]]:
    """Every geometry in float32, some of each route in 16 bits."""
    halves = [(*GEOMETRIES[i], dtype) for dtype, chosen in HALVES.items() for i in chosen]
    return [*((*geometry, torch.float32) for geometry in GEOMETRIES), *halves]


@pytest.mark.parametrize(("b", "c", "h", "w", "conv", "dtype"), geometries_of_dtypes())
def test_conv2d_second_moment(b: int, c: int, h: int, w: int, conv: Geometry, dtype: torch.dtype) -> None:
    x = rand(b, c, h, w, dtype=dtype)
    truth, plain = conv2d_second_moment_by_patches(x.double(), conv), conv2d_second_moment_by_patches(x.float(), conv)
    last = x.contiguous(memory_format=torch.channels_last)
    results = [conv_kernel.conv2d_second_moment(image, conv.encode()) for image in (x, last)]
    results.append(second_moment_by_patches(last, conv))
    if conv.stride == (1, 1):
        results.append(second_moment_by_shifts(x, conv))
    for actual in results:
        assert_close_to_reference(actual, truth, plain)
        assert torch.equal(actual, actual.mT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "c", "h", "w", "conv"), GEOMETRIES)
@pytest.mark.parametrize("bias", [0, 1])
def test_conv2d_cov_matvec(b: int, c: int, h: int, w: int, conv: Geometry, bias: int, dtype: torch.dtype) -> None:
    v = rand(2 * conv.groups, conv.features(c) + bias, dtype=dtype)
    x = rand(b, c, h, w, dtype=dtype)
    code = conv.encode()
    truth = conv_reference.conv2d_cov_matvec(x.double(), v.double(), 0.3, code)
    plain = conv_reference.conv2d_cov_matvec(x, v, 0.3, code)
    for image in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_close_to_reference(conv_kernel.conv2d_cov_matvec(image, v, 0.3, code), truth, plain)


def test_convolutions_of_many_channels_take_the_two_products(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = []
    monkeypatch.setattr(conv_kernel, "matvec_by_patches", lambda *_: routes.append("fused"))
    monkeypatch.setattr(conv_reference, "conv2d_cov_matvec", lambda *_: routes.append("plain"))
    conv = Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2)
    for m in (2, 64, 66):  # 1, 32 and 33 of each group
        conv_kernel.conv2d_cov_matvec(rand(1, 4, 5, 5), rand(m, 18), 0.0, conv.encode())
    conv_kernel.conv2d_cov_matvec(rand(0, 4, 5, 5), rand(2, 18), 0.0, conv.encode())
    assert routes == ["fused", "fused", "plain", "plain"]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(4, 7), st.integers(4, 7), st.integers(1, 3), st.integers(0, 2))
def test_shifts_equal_patches(c: int, h: int, w: int, k: int, pad: int) -> None:
    """The shift identity: shifted channel products, cut at the borders, add up to the patches' second moment."""
    conv = Geometry((k, 2), (1, 1), (pad, 1, 0, pad), (1, 1), 1)
    assume(has_interior(conv, h, w))  # images without one are cut into patches: test_routes_of_convolutions
    x = rand(2, c, h, w)
    by_patches = conv2d_second_moment_by_patches(x.double(), conv)
    by_shifts = second_moment_by_shifts(x, conv)
    torch.testing.assert_close(by_shifts.double(), by_patches, rtol=1e-4, atol=1e-4)
    assert torch.equal(by_shifts, by_shifts.mT)
    assert torch.linalg.eigvalsh(by_shifts.double()).min() >= -1e-4 * by_shifts.norm()


def test_routes_of_convolutions() -> None:
    def route(channels: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        conv = Geometry((kernel, kernel), (stride, stride), (kernel // 2,) * 4, (1, 1), groups)
        return conv_kernel.route(torch.empty(2, channels, 32, 32), conv)

    assert [route(64, 3), route(64, 1), route(3, 3), route(64, 3, 2), route(64, 3, 1, 64)] == [
        "shifts", "pixels", "patches", "patches", "depthwise"
    ]  # fmt: skip
    assert [route(64, 1, 1, 8), route(64, 1, 2, 8), route(64, 7, 2, 64), route(64, 9, 1, 64)] == [
        "pixels", "patches", "depthwise", "patches"
    ]  # fmt: skip
    valid = Geometry((3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    assert [conv_kernel.route(torch.empty(2, 64, size, size), valid) for size in (4, 5)] == ["patches", "shifts"]


def test_pixels_of_an_image_are_rows_or_planes_but_never_a_copy() -> None:
    """Rows where they are evenly apart, planes where those of each channel and image are, else another route."""
    image = torch.randn(2, 6, 4, 8)
    last = image.contiguous(memory_format=torch.channels_last)
    expected = image.unflatten(1, (2, 3)).permute(1, 0, 3, 4, 2)  # [groups, B, H, W, C/groups]
    for x, dims in (
        (last, 3),
        (last[:, :, 1:], 0),
        (last[:, ::2], 3),
        (image, 4),
        (image[:, :, :1], 0),
        (image[:1], 3),
    ):
        rows = conv_kernel.pixels(x, 2 if x.shape[1] == 6 else 1)
        assert (0 if rows is None else rows.dim()) == dims
        if rows is not None:
            assert rows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            if x.shape == image.shape:
                assert torch.equal(rows.reshape(expected.shape), expected)
    conv = Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2)
    assert conv_kernel.route(image[:, :, :1], conv) == conv_kernel.route(last[:, :, 1:], conv) == "patches"


def test_a_kernel_that_does_not_compile_falls_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfTriton(RuntimeError):
        __module__ = "triton.compiler"

    def broken(*args: object, **kwargs: object) -> None:
        raise OfTriton("PassManager::run failed")

    monkeypatch.setattr(gram_launch, "launch_gram", broken)
    monkeypatch.setattr(_backend, "candidate", lambda route, *_: "reference" if route.broken else "triton")
    route = _backend.routes()["second_moment"]
    monkeypatch.setattr(route, "broken", {})
    x = rand(5, 3)
    with pytest.warns(RuntimeWarning, match="second_moment"):
        result = _backend.call("second_moment", x, x, None)
    assert torch.equal(result, moment_reference.second_moment(x))
    assert torch.equal(_backend.call("second_moment", x, x, None), result)
    assert list(itertools.chain(route.broken)) == ["triton"]
