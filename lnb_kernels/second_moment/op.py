"""The op ``lnb_kernels::second_moment``: schema, fake, derivative and dispatch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels._matrix import as_matrix
from lnb_kernels.second_moment import reference

_backend.register(
    "second_moment",
    reference.second_moment,
    triton="lnb_kernels.second_moment.triton_kernel:second_moment",
    native="lnb_kernels.second_moment.native_kernel:second_moment",
    native_dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
)


@torch.library.custom_op("lnb_kernels::second_moment", mutates_args=())
def _second_moment(x: torch.Tensor, weights: torch.Tensor | None, blocks: int | None) -> torch.Tensor:
    s: torch.Tensor = _autocast.call("second_moment", x, x, weights, None, blocks)
    return s


@_second_moment.register_fake
def _(x: torch.Tensor, weights: torch.Tensor | None, blocks: int | None) -> torch.Tensor:
    return x.new_empty(shape_of(x.shape[-1], blocks), dtype=_checks.accumulation_dtype(x.dtype))


def shape_of(d: int, blocks: int | None) -> tuple[int, ...]:
    """The shape of the second moment of ``d`` features, whole or in ``blocks``."""
    if blocks is None:
        return d + 1, d + 1
    return blocks, d // blocks + 1, d // blocks + 1


def pull_back(samples: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """``[x 1] (G + G')`` of every sample ``[N, d]`` without the last column of a block: the samples' gradient.

    ``grad`` is that of the second moment, ``[d+1, d+1]`` or ``[blocks, d/blocks+1, d/blocks+1]``.
    """
    symmetric = (grad + grad.mT).reshape(-1, *grad.shape[-2:])
    cut = samples.unflatten(-1, (symmetric.shape[0], -1)).transpose(0, 1)  # [blocks, N, size]
    pulled: torch.Tensor = cut @ symmetric[:, :-1, :-1] + symmetric[:, -1:, :-1]
    return pulled.transpose(0, 1).flatten(-2)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor | None, int | None], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
    """``dL/dx_i = w_i (G + G') [x_i 1]`` without its last entry; ``dL/dw_i = [x_i 1] G [x_i 1]'``; blocks add up."""
    x, weights = ctx.saved_tensors
    samples = as_matrix(x).to(grad.dtype)  # [N, d]
    grad_x = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_x = pull_back(samples, grad).reshape(x.shape)
        if weights is not None:
            grad_x = grad_x * weights.to(grad.dtype).unsqueeze(-1)
        grad_x = grad_x.to(x.dtype)
    if ctx.needs_input_grad[1]:
        blocks = grad.reshape(-1, *grad.shape[-2:])
        cut = F.pad(
            samples.unflatten(-1, (blocks.shape[0], -1)).transpose(0, 1), (0, 1), value=1.0
        )  # [x 1] of each block
        grad_weights = ((cut @ blocks) * cut).sum((0, -1)).reshape(weights.shape).to(weights.dtype)
    return grad_x, grad_weights, None


_second_moment.register_autograd(_backward, setup_context=_save)


def second_moment(x: torch.Tensor, weights: torch.Tensor | None = None, blocks: int | None = None) -> torch.Tensor:
    """Second moment of the samples of ``x`` with a column of ones: ``S = sum_i w_i [x_i 1]' [x_i 1]``.

    ``S`` holds ``X'X``, the sums of the features (its last row and column), their squares (its diagonal) and the
    number of samples (its last entry; the sum of the weights where they are given). It adds over disjoint sets of samples.

    Args:
        x: samples ``[..., d]``, any leading dimensions (all of them are samples), float64, float32, bfloat16 or float16.
        weights: one weight per sample, shape ``x.shape[:-1]``; None counts every sample once.
        blocks: cut the features into this number of blocks, and give the second moment of each, with its own column of ones:
            a ``blocks``-th of the work and memory. None gives the second moment of all features.

    Returns:
        ``S`` ``[d+1, d+1]``, or ``[blocks, d/blocks+1, d/blocks+1]``, symmetric, float32 (float64 for float64 ``x``),
        accumulated in that dtype. Differentiable in ``x`` and ``weights``.

    Raises:
        TypeError: an argument is no dense floating tensor, or ``blocks`` no int.
        ValueError: ``x`` is a scalar, ``weights`` has another shape or device, or ``blocks`` does not divide ``d``.
    """
    _check_samples("second_moment", x, weights)
    if blocks is not None:
        _checks.divisor("second_moment", "blocks", blocks, x.shape[-1], "features of x")
    s: torch.Tensor = _second_moment(x, weights, blocks)
    return s


def _check_samples(op: str, x: torch.Tensor, weights: torch.Tensor | None) -> None:
    _checks.floating_tensor(op, "x", x)
    _checks.at_least_1d(op, "x", x)
    if weights is not None:
        _checks.floating_tensor(op, "weights", weights)
        _checks.shape_is(op, "weights", weights, x.shape[:-1], "the leading dimensions of x")
        _checks.same_device(op, "weights", weights, "x", x)
