"""The ops ``lnb_kernels::conv2d`` and ``conv2d_backward``: a convolution with moment probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lnb_kernels import _autocast, _backend, _checks, _sampling, moment_stream
from lnb_kernels._library import below_autograd, define
from lnb_kernels.conv2d import reference
from lnb_kernels.conv2d.blocks import block_features, block_moments, is_cut
from lnb_kernels.conv2d.geometry import Geometry, Pair, check_input, geometry, pad_extra
from lnb_kernels.conv2d.op import patch_moment


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    probe: torch.Tensor | None,
    channel_probe: torch.Tensor | None,
    code: list[int],
    *_: Any,
) -> torch.Tensor:
    conv = Geometry.decode(code)
    return F.conv2d(x, weight, bias, conv.stride, conv.split_padding()[0], conv.dilation, conv.groups)


def _backward_kernel(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    code: list[int],
    positions: int,
    mask: list[bool],
    start: torch.Tensor | None,
    every: int,
    moment_dtype: torch.dtype | None,
    moment_blocks: int,
) -> list[torch.Tensor]:
    """The wanted ones of: gradients of ``x``, ``weight`` and bias; second moments of the patches; channel moments."""
    with _autocast.disabled(x.device):

        def of_part(part: torch.Tensor, geometry: list[int]) -> torch.Tensor:
            found: torch.Tensor = _backend.call("conv2d_second_moment", part, part, geometry, moment_dtype)
            return found

        def moment() -> torch.Tensor:
            images, scale = _sampling.read(x, start, every)
            s = block_moments(images, Geometry.decode(code), moment_blocks, of_part)
            s = s.to(_checks.accumulation_dtype(x.dtype))
            return s if scale == 1.0 else s.mul_(scale)

        # First: beside it, another stream makes the gradients.
        moments = [moment_stream.computed(moment, x, start)] if mask[3] else []
        results = [*reference.layer_gradients(grad, x, weight, code, mask), *moments]
        if mask[4]:
            results.append(reference.channel_moments(x, positions))
    return results


def _backward_fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    code: list[int],
    positions: int,
    mask: list[bool],
    *options: Any,
) -> list[torch.Tensor]:
    *_, moment_blocks = options
    results = reference.layer_gradients(grad, x, weight, code, mask)
    accumulate = _checks.accumulation_dtype(x.dtype)
    if mask[3]:
        size = block_features(Geometry.decode(code), x.shape[1], moment_blocks) + 1
        results.append(x.new_empty((moment_blocks, size, size), dtype=accumulate))
    if mask[4]:
        results.append(x.new_empty((3, x.shape[1]), dtype=accumulate))
    return results


class _Conv2dBackward(torch.autograd.Function):
    """The second derivative of the layer: that of the three gradients and of both moments, recomputed."""

    @staticmethod
    def forward(*args: Any) -> tuple[torch.Tensor, ...]:
        with below_autograd():
            return tuple(torch.ops.lnb_kernels.conv2d_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3], inputs[6])
        ctx.code, ctx.positions, ctx.mask, ctx.every, ctx.moment_blocks = *inputs[3:6], inputs[7], inputs[9]

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.enable_grad():
            *saved, start = ctx.saved_tensors
            grad, x, weight = (tensor.detach().requires_grad_() for tensor in saved)
            results = reference.layer_gradients(grad, x, weight, ctx.code, ctx.mask)
            if ctx.mask[3]:
                images, scale = _sampling.read(x, start, ctx.every)
                conv = Geometry.decode(ctx.code)
                results.append(block_moments(images, conv, ctx.moment_blocks, patch_moment) * scale)
            if ctx.mask[4]:
                results.append(reference.channel_moments(x, ctx.positions))
            grads = torch.autograd.grad(results, (grad, x, weight), upstream, allow_unused=True)
        return (*grads, *[None] * 7)


_conv2d_backward: Callable[..., list[torch.Tensor]] = define(
    "conv2d_backward(Tensor grad, Tensor x, Tensor weight, SymInt[] code, SymInt positions, bool[] mask, "
    "Tensor? start, SymInt every, ScalarType? moment_dtype, SymInt moment_blocks) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
    _Conv2dBackward,
)


class _Conv2d(torch.autograd.Function):
    """The layer's gradients and, for the probes, their moments by definition: these do not depend on ``grad``."""

    forward = staticmethod(_convolve)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, probe, _, ctx.code, ctx.positions, start, ctx.every, ctx.moment_dtype = inputs
        ctx.moment_blocks = Geometry.decode(ctx.code).groups if probe is None else probe.shape[0]
        ctx.save_for_backward(x, weight, start)
        ctx.use = moment_stream.use_of(probe)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, start = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:5])
        how = start, ctx.every, ctx.moment_dtype, ctx.moment_blocks
        with moment_stream.backward_of(ctx.use):
            found = _conv2d_backward(grad, x, weight, ctx.code, ctx.positions, mask, *how)
        results = iter(found)
        return (*(next(results) if wanted else None for wanted in mask), *[None] * 5)


_conv2d: Callable[..., torch.Tensor] = define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? probe, Tensor? channel_probe, SymInt[] code, "
    "SymInt positions, Tensor? start, SymInt every, ScalarType? moment_dtype) -> Tensor",
    _convolve,
    _convolve,
    _Conv2d,
)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    probe: torch.Tensor | None = None,
    channel_probe: torch.Tensor | None = None,
    sample: tuple[torch.Tensor, int] | None = None,
    moment_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``F.conv2d`` whose backward pass gives ``probe`` the second moment of the patches as its gradient.

    The probes do not change the output. The gradient of ``probe`` is DEFINED as
    :func:`lnb_kernels.conv2d_second_moment` of ``x``, that of ``channel_probe`` as the rows (sum of ``x``, sum of
    ``x^2``, count) per input channel over batch and all positions of the unpadded ``x``; neither depends on the
    output's gradient. Autograd adds them over uses and micro-batches.

    Args:
        x: ``[B, C, H, W]`` or ``[C, H, W]``.
        weight: ``[m, C/groups, kh, kw]``.
        bias: ``[m]`` or None.
        stride, padding, dilation, groups: as of ``F.conv2d``.
        probe: ``[groups, D+1, D+1]``, ``D = C/groups * kh * kw``; or None. More blocks in place of ``groups``, and fewer
            entries to each, give the second moments of smaller blocks: a multiple of ``groups`` that divides ``C``, of
            some channels each; or a multiple of ``C``, of equal parts of a channel's taps: some rows of its kernel, or a
            part of one row.
        channel_probe: ``[3, C]`` or None.
            Probes that are None or do not require a gradient cost nothing; without any this is a plain ``F.conv2d``
            call.
        sample: ``(start, every)``: as for :func:`lnb_kernels.linear`, with one of every ``every`` images read.
            The channel moments read every image.
        moment_dtype: as for :func:`lnb_kernels.linear`.

    Returns:
        ``[B, m, H_out, W_out]`` or ``[m, H_out, W_out]``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a value or shape is not allowed.
    """
    live = _checks.live_probe("conv2d", "probe", probe)
    channel_live = _checks.live_probe("conv2d", "channel_probe", channel_probe)
    if not (live or channel_live):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    x, weight = _checks.layer("conv2d", x, weight, bias, "[m, C/groups, kh, kw]")
    conv = geometry("conv2d", tuple(weight.shape[2:]), stride, padding, dilation, groups)
    x, weight, bias = _autocast.cast_layer(x, weight, bias)
    _checks.same_dtype("conv2d", x, weight=weight, bias=bias)
    image = check_input("conv2d", x, conv)
    channels = image.shape[1]
    if weight.shape[1] * conv.groups != channels or weight.shape[0] % conv.groups:
        raise ValueError(
            f"conv2d: weight has shape {tuple(weight.shape)}; allowed is [m, C/groups, kh, kw] for {channels} channels of x, m "
            f"a multiple of groups={conv.groups}"
        )
    if probe is not None and live:
        blocks = probe.shape[0] if probe.dim() == 3 and is_cut(conv, channels, probe.shape[0]) else conv.groups
        size = block_features(conv, channels, blocks) + 1
        _checks.shape_is(
            "conv2d", "probe", probe, (blocks, size, size), "[groups, D+1, D+1], D = C/groups kh kw of the weight"
        )
        _checks.same_device("conv2d", "probe", probe, "x", x)
    if channel_probe is not None and channel_live:
        _checks.shape_is("conv2d", "channel_probe", channel_probe, (3, channels), "[3, C] of x")
        _checks.same_device("conv2d", "channel_probe", channel_probe, "x", x)
    chosen = _sampling.check("conv2d", sample, image)
    _sampling.check_dtype("conv2d", moment_dtype)
    start, every = (None, 1) if chosen is None else chosen
    positions = image.shape[0] * image.shape[2] * image.shape[3]
    image, symmetric = pad_extra(image, conv)
    rest = Geometry(
        conv.kernel, conv.stride, (symmetric[1], symmetric[1], symmetric[0], symmetric[0]), conv.dilation, conv.groups
    )
    y: torch.Tensor = _conv2d(
        image,
        weight,
        bias,
        probe if live else None,
        channel_probe if channel_live else None,
        rest.encode(),
        positions,
        start,
        every,
        moment_dtype,
    )
    return y if x.dim() == 4 else y.squeeze(0)
