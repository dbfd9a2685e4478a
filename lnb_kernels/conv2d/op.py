"""The ops ``lnb_kernels::conv2d_second_moment`` and ``conv2d_cov_matvec``: schemas, fakes, derivatives, dispatch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels.conv2d import reference
from lnb_kernels.conv2d.blocks import block_moments, is_cut
from lnb_kernels.conv2d.geometry import Geometry, Pair, check_input, geometry, pad_extra

_backend.register(
    "conv2d_second_moment",
    reference.conv2d_second_moment,
    triton="lnb_kernels.conv2d.triton_kernel:conv2d_second_moment",
    native="lnb_kernels.conv2d.native_kernel:conv2d_second_moment",
    native_cuda="lnb_kernels.conv2d.cuda_kernel:conv2d_second_moment",
    native_dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
)
_backend.register(
    "conv2d_cov_matvec", reference.conv2d_cov_matvec, triton="lnb_kernels.conv2d.triton_kernel:conv2d_cov_matvec"
)


@torch.library.custom_op("lnb_kernels::conv2d_second_moment", mutates_args=())
def _conv2d_second_moment(x: torch.Tensor, code: list[int]) -> torch.Tensor:
    s: torch.Tensor = _autocast.call("conv2d_second_moment", x, x, code)
    return s


@_conv2d_second_moment.register_fake
def _(x: torch.Tensor, code: list[int]) -> torch.Tensor:
    conv = Geometry.decode(code)
    size = conv.features(x.shape[1]) + 1
    return x.new_empty((conv.groups, size, size), dtype=_checks.accumulation_dtype(x.dtype))


def _save_moment(ctx: Any, inputs: tuple[torch.Tensor, list[int]], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.code = inputs[1]


def _moment_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    """``dL/dP = [P 1] (G + G')`` per group, a convolution; then patches are folded back, a transposed convolution."""
    (x,) = ctx.saved_tensors
    conv = Geometry.decode(ctx.code)
    d = grad.shape[-1] - 1
    symmetric = (grad + grad.mT)[:, :d]  # [groups, D, D+1]
    weight = symmetric[..., :d].reshape(conv.groups * d, -1, *conv.kernel)
    image, padding = pad_extra(x.to(grad.dtype), conv)
    pulled = F.conv2d(image, weight, symmetric[..., d].reshape(-1), conv.stride, padding, conv.dilation, conv.groups)
    taps = torch.eye(d, dtype=grad.dtype, device=grad.device).view(d, -1, *conv.kernel).repeat(conv.groups, 1, 1, 1)
    folded = _fold(pulled, taps, image, padding, conv)
    return _crop(folded, x, conv).to(x.dtype), None


def _fold(
    grad: torch.Tensor, weight: torch.Tensor, image: torch.Tensor, padding: tuple[int, int], conv: Geometry
) -> torch.Tensor:
    """The input gradient of a convolution with ``weight``."""
    folded: torch.Tensor = torch.ops.aten.convolution_backward(
        grad, image, weight, None, conv.stride, padding, conv.dilation, False, (0, 0), conv.groups, (True, False, False)
    )[0]
    return folded


def _crop(padded: torch.Tensor, x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """Undo the asymmetric part of the padding."""
    left, _, top, _ = conv.split_padding()[1]
    return padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]


_conv2d_second_moment.register_autograd(_moment_backward, setup_context=_save_moment)


@torch.library.custom_op("lnb_kernels::conv2d_cov_matvec", mutates_args=())
def _conv2d_cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float, code: list[int]) -> torch.Tensor:
    product: torch.Tensor = _autocast.call("conv2d_cov_matvec", x, x, v, ridge, code)
    return product


@_conv2d_cov_matvec.register_fake
def _(x: torch.Tensor, v: torch.Tensor, ridge: float, code: list[int]) -> torch.Tensor:
    return v.new_empty(v.shape)


def _save_matvec(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, float, list[int]], output: torch.Tensor) -> None:
    x, v, ridge, code = inputs
    ctx.save_for_backward(x, v)
    ctx.ridge = ridge
    ctx.code = code


def _matvec_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
    """``dL/dv = A G``. With ``y(v) = conv(x, v)``, ``L = <y(G), y(v)> / N``: ``dL/dx`` is two input gradients."""
    x, v = ctx.saved_tensors
    conv = Geometry.decode(ctx.code)
    grad_x = grad_v = None
    if ctx.needs_input_grad[0]:
        accumulate = _checks.accumulation_dtype(torch.promote_types(x.dtype, v.dtype))
        d = conv.features(x.shape[1])
        image, padding = pad_extra(x.to(accumulate), conv)

        def layer(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            rows = rows.to(accumulate)
            weight = rows[:, :d].reshape(-1, x.shape[1] // conv.groups, *conv.kernel)
            bias = rows[:, d] if rows.shape[1] > d else None
            return weight, F.conv2d(image, weight, bias, conv.stride, padding, conv.dilation, conv.groups)

        (weight_v, y_v), (weight_g, y_g) = layer(v), layer(grad)
        total = _fold(y_v, weight_g, image, padding, conv) + _fold(y_g, weight_v, image, padding, conv)
        count = max(y_v.shape[0] * y_v.shape[2] * y_v.shape[3], 1)
        grad_x = (_crop(total, x, conv) / count).to(x.dtype)
    if ctx.needs_input_grad[1]:
        grad_v = _conv2d_cov_matvec(x, grad, ctx.ridge, ctx.code)
    return grad_x, grad_v, None, None


_conv2d_cov_matvec.register_autograd(_matvec_backward, setup_context=_save_matvec)


def patch_moment(x: torch.Tensor, code: list[int]) -> torch.Tensor:
    """The op behind :func:`conv2d_second_moment`, for checked ``[B, C, H, W]`` and an encoded geometry."""
    s: torch.Tensor = _conv2d_second_moment(x, code)
    return s


def conv2d_second_moment(
    x: torch.Tensor,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    blocks: int = 1,
) -> torch.Tensor:
    """Second moment of the patches that a 2-D convolution sees, with a column of ones, per group.

    Samples are the ``N = B * H_out * W_out`` output positions; a sample is the zero-padded patch in the order of
    ``weight.flatten(1)`` (channel, kernel row, kernel column), then 1.

    Args:
        x: ``[B, C, H, W]`` or ``[C, H, W]``, float64, float32, bfloat16 or float16.
        kernel_size, stride, padding, dilation, groups: as of ``F.conv2d``; padding also ``"same"`` (stride 1) or
            ``"valid"``.
        blocks: equal diagonal blocks to form of each group's matrix: of some channels each, or of equal parts of a channel's
            taps, which are some rows of its kernel or a part of one row.

    Returns:
        ``S`` ``[groups * blocks, D+1, D+1]``, ``D = C/groups * kh * kw / blocks``, float32 (float64 for float64 ``x``).
        Differentiable in ``x``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a value or shape is not allowed.
    """
    conv = geometry("conv2d_second_moment", kernel_size, stride, padding, dilation, groups)
    image = check_input("conv2d_second_moment", x, conv)
    if isinstance(blocks, bool) or not isinstance(blocks, int):
        raise TypeError(f"conv2d_second_moment: blocks must be an int >= 1, got {blocks!r}")
    if not is_cut(conv, image.shape[1], conv.groups * blocks):
        raise ValueError(
            f"conv2d_second_moment: blocks={blocks!r} does not cut {image.shape[1] // conv.groups} channels of each group, or "
            f"the kernel {conv.kernel} of each, into equal blocks of channels, of kernel rows, or of parts of a kernel row"
        )
    return block_moments(image, conv, conv.groups * blocks, patch_moment)


def conv2d_cov_matvec(
    x: torch.Tensor,
    v: torch.Tensor,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    ridge: float = 0.0,
) -> torch.Tensor:
    """``(P~'P~ / N + ridge diag(1..1, 0)) v`` over the patches ``P`` of a convolution, per output channel, matrix-free.

    ``P~`` is ``P``, or ``[P 1]`` where rows of ``v`` have ``D + 1`` entries. Costs one convolution and one weight
    gradient.

    Args:
        x: ``[B, C, H, W]`` or ``[C, H, W]``.
        v: ``[m, D]`` or ``[m, D+1]``, ``D = C/groups * kh * kw``, one row per output channel of all groups, in order.
        kernel_size, stride, padding, dilation, groups: as of ``F.conv2d``; padding also ``"same"`` (stride 1) or
            ``"valid"``.
        ridge: finite number >= 0, added to the diagonal of the weights.

    Returns:
        Shape and dtype of ``v``; accumulated in float32 (float64 where an argument is). Differentiable in ``x``, ``v``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a value or shape is not allowed.
    """
    op = "conv2d_cov_matvec"
    conv = geometry(op, kernel_size, stride, padding, dilation, groups)
    image = check_input(op, x, conv)
    _checks.floating_tensor(op, "v", v)
    _checks.same_device(op, "v", v, "x", x)
    d = conv.features(image.shape[1])
    if v.dim() != 2 or v.shape[1] not in (d, d + 1) or v.shape[0] % conv.groups:
        raise ValueError(
            f"{op}: v has shape {tuple(v.shape)}; allowed is [m, D={d}] or [m, D+1={d + 1}], "
            f"m a multiple of groups={groups}, for {image.shape[1]} channels of x"
        )
    product: torch.Tensor = _conv2d_cov_matvec(image, v, _checks.ridge(op, ridge, x, v), conv.encode())
    return product
