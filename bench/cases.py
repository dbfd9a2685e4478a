"""The calls that are inspected and costed: every kernel in every configuration that the heuristics ship."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

BF16, FP32 = torch.bfloat16, torch.float32


def _meta(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _second_moment(n: int, d: int, dtype: torch.dtype, weighted: bool = False) -> Callable[[], Any]:
    from lnb_kernels.second_moment.triton_kernel import second_moment

    return lambda: second_moment(_meta(n, d, dtype=dtype), _meta(n) if weighted else None)


def _second_moment_of_blocks(n: int, d: int, blocks: int, dtype: torch.dtype) -> Callable[[], Any]:
    from lnb_kernels.second_moment.triton_kernel import second_moment

    return lambda: second_moment(_meta(n, d, dtype=dtype), None, None, blocks)


def _linear_backward(n: int, d: int, m: int, dtype: torch.dtype) -> Callable[[], Any]:
    from lnb_kernels.linear.triton_kernel import fused_backward

    def call() -> Any:
        return fused_backward(
            _meta(n, m, dtype=dtype), _meta(n, d, dtype=dtype), _meta(m, d, dtype=dtype), [False, True, True, True]
        )

    return call


def _pcg(m: int, d: int, batch: int, scope: str, warm: bool = True) -> Callable[[], Any]:
    from lnb_kernels.pcg.triton_kernel import pcg

    def call() -> Any:
        s, g, mu = _meta(batch, d + 1, d + 1), _meta(batch, m, d + 1), _meta(batch, d)
        return pcg(s, g, _meta(batch, m, d + 1) if warm else None, mu, _meta(batch, d), 2, 0.1, scope, 2)

    return call


def _cov_matvec(n: int, d: int, m: int, dtype: torch.dtype) -> Callable[[], Any]:
    from lnb_kernels.cov_matvec.triton_kernel import cov_matvec

    return lambda: cov_matvec(_meta(n, d, dtype=dtype), _meta(m, d + 1), 0.1)


def _conv2d(
    b: int,
    c: int,
    size: int,
    kernel: int,
    stride: int,
    groups: int,
    dtype: torch.dtype,
    channels_last: bool | None = None,
) -> Callable[[], Any]:
    """``channels_last`` None: only images of 16 channels or more."""
    from lnb_kernels.conv2d.geometry import Geometry
    from lnb_kernels.conv2d.triton_kernel import conv2d_second_moment

    code = Geometry((kernel, kernel), (stride, stride), (kernel // 2,) * 4, (1, 1), groups).encode()
    last = c >= 16 if channels_last is None else channels_last

    def call() -> Any:
        x = _meta(b, c, size, size, dtype=dtype)
        return conv2d_second_moment(x.to(memory_format=torch.channels_last) if last else x, code)

    return call


def _half_patches(dtype: torch.dtype) -> Callable[[], Any]:
    """Of ViT-B/16's patch embedding: 8 of the 16 rows of every patch, of each channel, in a view of the images."""
    from lnb_kernels.conv2d.geometry import Geometry
    from lnb_kernels.conv2d.triton_kernel import conv2d_second_moment

    code = Geometry((8, 16), (16, 16), (0, 0, 0, 0), (1, 1), 3).encode()
    return lambda: conv2d_second_moment(_meta(128, 3, 224, 224, dtype=dtype)[:, :, 8:], code)


def _conv2d_cov_matvec(b: int, c: int, size: int, m: int, groups: int, dtype: torch.dtype) -> Callable[[], Any]:
    from lnb_kernels.conv2d.geometry import Geometry
    from lnb_kernels.conv2d.triton_kernel import conv2d_cov_matvec

    conv = Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups)
    return lambda: conv2d_cov_matvec(
        _meta(b, c, size, size, dtype=dtype), _meta(m, conv.features(c) + 1), 0.1, conv.encode()
    )


def _newton_schulz(batch: int, k: int, l: int, dtype: torch.dtype) -> Callable[[], Any]:
    from lnb_kernels.newton_schulz.triton_kernel import newton_schulz

    return lambda: newton_schulz(_meta(batch, k, l, dtype=dtype), [3.4, -4.8, 2.0], 1)


def _newton_schulz_root(batch: int, n: int) -> Callable[[], Any]:
    from lnb_kernels.newton_schulz.triton_kernel import newton_schulz_root

    return lambda: newton_schulz_root(_meta(batch, n, n), [3.4, -4.8, 2.0], 2)


def _fused_direct(
    side: int, size: int, gradients: torch.dtype, directions: torch.dtype, precision: str
) -> Callable[[], Any]:
    """A layer with a bias; its tensors have memory, whose addresses the tables take."""
    from lnb_kernels.fused_step.layers import SUMS, DirectArguments, DirectLayer
    from lnb_kernels.fused_step.triton_kernel import direct_layers_

    def call() -> Any:
        def made(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype)

        bias = made(side, dtype=gradients), made(side)
        layer = DirectLayer(
            made(side, size, dtype=directions), made(side, size), made(side, size, dtype=gradients), *bias,
            made(1, size, size), made(size), made(1, side, side),
        )  # fmt: skip
        wide = torch.float64
        numbers = made(SUMS * side, dtype=wide), made(side, dtype=wide), made(1, dtype=wide), made(1, dtype=wide)
        direct_layers_([layer], DirectArguments(*numbers, 0.95, 0.05, torch.tensor(True), precision))

    return call


def _refresh(*sizes: tuple[int, int, torch.dtype]) -> Callable[[], Any]:
    """Layers with a bias, averages and gradients that are averaged where they are read."""
    from lnb_kernels.refresh import AveragedGradient, InputMetric, OutputMetric
    from lnb_kernels.refresh.triton_kernel import refresh_metrics

    def averaged(dtype: torch.dtype, *shape: int) -> AveragedGradient:
        share = torch.ones((), dtype=torch.float64)
        return AveragedGradient(torch.zeros(shape, dtype=dtype), torch.zeros(shape), share, 0.95, 0.05)

    def blocks(n: int) -> torch.Tensor:
        return torch.zeros(1, 1, n, n)

    def layer(side: int, size: int, dtype: torch.dtype) -> InputMetric:
        size_of_inputs = torch.zeros((), dtype=torch.float64)
        outputs = OutputMetric(
            averaged(dtype, side, size), averaged(dtype, side), blocks(side), blocks(side), size_of_inputs
        )
        return InputMetric(
            blocks(size + 1), None, blocks(size + 1), torch.zeros(()), blocks(size), torch.zeros(1, size), 0.9, 0.2, True,
            1.0, 1.0, 1, 0.01, (outputs,),
        )  # fmt: skip

    return lambda: refresh_metrics(
        [layer(*size) for size in sizes], torch.tensor(True), 2e-6, (3.4, -4.8, 2.0), 5
    )  # fmt: skip


def _fused_finish() -> Callable[[], Any]:
    from lnb_kernels.fused_step.layers import SUMS, FinishArguments, FinishLayer, Numbers
    from lnb_kernels.fused_step.triton_kernel import finish_layers_
    from lnb_kernels.step_tables import RadiusRule, StepSettings

    def call() -> Any:
        wide = torch.zeros(768, dtype=torch.float64)
        layer = FinishLayer(768, 6, torch.zeros(768), torch.zeros(768), torch.zeros(768, dtype=BF16), 0, 1.0, 0.1)
        one = [wide[:1]] * 4
        numbers = Numbers(torch.zeros(768), wide, *one, wide[:4].view(1, 4), *[wide[:1]] * 4)
        partials = torch.zeros(SUMS * 6 * 768, dtype=torch.float64)
        rule = RadiusRule(0.25, 0.9, 1.02, 1e-4, 0.98, 0.8, 1.2, 0.98, 0.1, 1.02, 20, 1.5, 0.02, 10)
        settings = StepSettings(0.95, True, 0.99, 0.1, 0.25, rule, 0.99, 1e-8, 0.01, 1e18)
        ok = torch.tensor(True)
        given = FinishArguments(numbers, partials, wide, wide[:1], torch.zeros(1), wide[:1], wide[:1], settings, ok)
        finish_layers_([layer], given)

    return call


def _fused_apply(width: int) -> Callable[[], Any]:
    """Weights and other parameters in bfloat16 with masters, and biases in float32."""
    from lnb_kernels.fused_step.apply_entries import LISTS, Numbers, entries_of
    from lnb_kernels.fused_step.triton_kernel import apply_

    def call() -> Any:
        def made(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype)

        wide = made(3, dtype=torch.float64)
        params = [made(32, width, dtype=BF16), made(32), made(9, width, dtype=BF16)]
        masters, own = [made(32, width), made(9, width)], [made(9, width)]
        directions, gradients = [made(32, width, dtype=BF16), made(32)], [made(9, width, dtype=BF16)]
        finite, rates = torch.ones(1, dtype=torch.bool), [(0.1, None)]
        tensors = (params, masters, own, [made(9, width)], [finite], directions, [made(32)], gradients)
        lists = dict(zip(LISTS, tensors, strict=True))
        numbers = Numbers(
            wide, wide, wide[:1], wide[:1], rates, rates, [0.9, 0.1, 0.99, 1e-8], finite, torch.tensor(True)
        )
        apply_(lists, entries_of(lists, [0, -1, 1], [0, 1, 2], [0, 0, 0]), numbers)

    return call


def cases() -> dict[str, Callable[[], Any]]:
    """Name of each case and the call."""
    table: dict[str, Callable[[], Any]] = {}
    for dtype, tag in ((BF16, "bf16"), (FP32, "fp32")):
        for d in (16, 32, 64, 1024, 2048):
            table[f"second_moment/{tag}/d{d}"] = _second_moment(16384, d, dtype)
        table[f"second_moment/{tag}/d2048/weighted"] = _second_moment(16384, 2048, dtype, weighted=True)
        for d, blocks in ((2048, 16), (784, 7), (1728, 12)):  # blocks of 128, 112 and 144 columns
            table[f"second_moment/{tag}/d{d}/blocks{blocks}"] = _second_moment_of_blocks(16384, d, blocks, dtype)
        table[f"linear_backward/{tag}/d2048"] = _linear_backward(16384, 2048, 2048, dtype)
        for d, m in ((16, 10), (512, 32), (1024, 10)):
            table[f"cov_matvec/{tag}/d{d}/m{m}"] = _cov_matvec(65536, d, m, dtype)
        for c, groups in ((16, 1), (32, 1), (256, 1), (256, 8)):
            table[f"conv2d_second_moment/{tag}/3x3/c{c}/g{groups}"] = _conv2d(32, c, 56, 3, 1, groups, dtype)
        table[f"conv2d_second_moment/{tag}/7x7/c3/stride2"] = _conv2d(32, 3, 224, 7, 2, 1, dtype)
        table[f"conv2d_second_moment/{tag}/3x3/depthwise"] = _conv2d(32, 128, 56, 3, 1, 128, dtype)
        table[f"conv2d_second_moment/{tag}/3x3/c3"] = _conv2d(32, 3, 64, 3, 1, 1, dtype)
        table[f"conv2d_cov_matvec/{tag}/3x3/c64/m10"] = _conv2d_cov_matvec(32, 64, 56, 10, 1, dtype)
        table[f"newton_schulz/{tag}/512x2048"] = _newton_schulz(4, 512, 2048, dtype)
        # Rows that the copy engine does not take, and those so few that tiles are stored at once.
        table[f"second_moment/{tag}/d300/odd"] = _second_moment(16384, 301 if dtype == FP32 else 300, dtype)
        table[f"second_moment/{tag}/d512/few_rows"] = _second_moment(64, 512, dtype)
        table[f"linear_backward/{tag}/d300/few_rows"] = _linear_backward(64, 300, 300, dtype)
        table[f"newton_schulz/{tag}/301x300"] = _newton_schulz(4, 301, 300, dtype)
    for d in (2048, 8192):
        table[f"linear_backward/bf16/d{d}/x8192"] = _linear_backward(8192, d, 8192, BF16)
    # ResNet-50's, in blocks of channels, for images in both layouts.
    for layout, last in (("nchw", False), ("channels_last", True)):
        table[f"conv2d_second_moment/bf16/1x1/c256/g2/{layout}"] = _conv2d(256, 256, 56, 1, 1, 2, BF16, last)
    table["conv2d_second_moment/bf16/1x1/c1024/g8/14x14/nchw"] = _conv2d(256, 1024, 14, 1, 1, 8, BF16, False)
    table["conv2d_second_moment/bf16/3x3/c64/g4/nchw"] = _conv2d(256, 64, 56, 3, 1, 4, BF16, False)
    table["conv2d_second_moment/bf16/3x3/c128/g8/stride2"] = _conv2d(256, 128, 56, 3, 2, 8, BF16)
    table["conv2d_second_moment/bf16/1x1/c512/g4/stride2"] = _conv2d(256, 512, 28, 1, 2, 4, BF16)
    table["conv2d_second_moment/bf16/16x16/c3/half_patches"] = _half_patches(BF16)
    table["second_moment/bf16/d4096"] = _second_moment(16384, 4096, BF16)
    table["newton_schulz/bf16/2048x2048"] = _newton_schulz(2, 2048, 2048, BF16)
    table["newton_schulz_root/fp32/512"] = _newton_schulz_root(4, 512)
    table["pcg/neuron/d128/m2048/batch4"] = _pcg(2048, 128, 4, "neuron")
    table["pcg/neuron/d64/m10"] = _pcg(10, 64, 1, "neuron", warm=False)
    table["pcg/neuron/d512/m512/batch8"] = _pcg(512, 512, 8, "neuron")
    table["pcg/neuron/d2048/m2048"] = _pcg(2048, 2048, 1, "neuron")
    table["pcg/layer/d2048/m2048"] = _pcg(2048, 2048, 1, "layer")
    table["pcg/layer/d512/m10"] = _pcg(10, 512, 1, "layer", warm=False)
    table["fused_step/direct/bf16/tf32"] = _fused_direct(128, 144, BF16, BF16, "tf32")
    table["refresh"] = _refresh(*[(128, 144, BF16), (151, 257, FP32)] * 2)
    table["fused_step/direct/bf16/bf16"] = _fused_direct(128, 144, BF16, BF16, "bf16")
    table["fused_step/direct/fp32/tf32x3"] = _fused_direct(128, 144, FP32, FP32, "tf32x3")
    table["fused_step/direct/fp32/tf32/odd"] = _fused_direct(64, 49, FP32, BF16, "tf32")
    table["fused_step/finish"] = _fused_finish()
    table["fused_step/apply"] = _fused_apply(768)
    return table
