"""The op ``lnb_kernels::cov_matvec``: schema, fake, derivative and dispatch."""

from __future__ import annotations

from typing import Any

import torch

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels._matrix import as_matrix
from lnb_kernels.cov_matvec import reference

_backend.register("cov_matvec", reference.cov_matvec, triton="lnb_kernels.cov_matvec.triton_kernel:cov_matvec")


@torch.library.custom_op("lnb_kernels::cov_matvec", mutates_args=())
def _cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float) -> torch.Tensor:
    product: torch.Tensor = _autocast.call("cov_matvec", x, x, v, ridge)
    return product


@_cov_matvec.register_fake
def _(x: torch.Tensor, v: torch.Tensor, ridge: float) -> torch.Tensor:
    return v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, float], output: torch.Tensor) -> None:
    x, v, ridge = inputs
    ctx.save_for_backward(x, v)
    ctx.ridge = ridge


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
    """The matrix is symmetric, so ``dL/dv = A G``; ``dL/dX = (X~ V' G + X~ G' V) / N`` without the ones column."""
    x, v = ctx.saved_tensors
    grad_x = grad_v = None
    if ctx.needs_input_grad[0]:
        d = x.shape[-1]
        accumulate = _checks.accumulation_dtype(torch.promote_types(x.dtype, v.dtype))
        samples = as_matrix(x).to(accumulate)
        left = as_matrix(v).to(accumulate)
        right = as_matrix(grad).to(accumulate)
        left_products, right_products = samples @ left[:, :d].t(), samples @ right[:, :d].t()  # [N, m]
        if v.shape[-1] > d:
            left_products, right_products = left_products + left[:, d], right_products + right[:, d]
        grad_samples = (left_products @ right[:, :d] + right_products @ left[:, :d]) / max(samples.shape[0], 1)
        grad_x = grad_samples.view(x.shape).to(x.dtype)
    if ctx.needs_input_grad[1]:
        grad_v = _cov_matvec(x, grad, ctx.ridge)
    return grad_x, grad_v, None


_cov_matvec.register_autograd(_backward, setup_context=_save)


def cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    """``(X~'X~ / N + ridge diag(1..1, 0)) v`` for each row of ``v``, without forming the matrix.

    ``X~`` is ``X``, or ``[X 1]`` where rows of ``v`` have ``d + 1`` entries; the bias entry (the last) is not
    regularised. Costs ``4 N d m`` FLOPs. With zero samples the product is ``ridge v`` (and 0 on the bias).

    Args:
        x: samples ``[..., d]``; all leading dimensions are samples.
        v: vectors ``[..., d]`` or ``[..., d+1]``; all leading dimensions are vectors.
        ridge: finite number >= 0, added to the diagonal of the weights.

    Returns:
        Shape and dtype of ``v``; accumulated in float32 (float64 where an argument is). Differentiable in ``x``, ``v``.

    Raises:
        TypeError: an argument is no dense floating tensor, or ``ridge`` no number.
        ValueError: shapes or devices do not fit, or ``ridge`` is out of range.
    """
    op = "cov_matvec"
    for name, value in (("x", x), ("v", v)):
        _checks.floating_tensor(op, name, value)
        _checks.at_least_1d(op, name, value)
    _checks.same_device(op, "v", v, "x", x)
    d = x.shape[-1]
    if v.shape[-1] not in (d, d + 1):
        raise ValueError(f"{op}: v has shape {tuple(v.shape)}; its last dimension must be d={d} of x, or d+1={d + 1}")
    product: torch.Tensor = _cov_matvec(x, v, _checks.ridge(op, ridge, x, v))
    return product
