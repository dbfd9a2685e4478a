"""The op ``lnb_kernels::arrow_solve``: schema, fake, derivative and dispatch."""

from __future__ import annotations

from typing import Any

import torch

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels.arrow import reference

_backend.register("arrow_solve", reference.arrow_solve)


@torch.library.custom_op("lnb_kernels::arrow_solve", mutates_args=())
def _arrow_solve(v: torch.Tensor, mu: torch.Tensor, var: torch.Tensor, bias: bool) -> torch.Tensor:
    solved: torch.Tensor = _autocast.call("arrow_solve", v, v, mu, var, bias)
    return solved


@_arrow_solve.register_fake
def _(v: torch.Tensor, mu: torch.Tensor, var: torch.Tensor, bias: bool) -> torch.Tensor:
    return v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool], output: torch.Tensor) -> None:
    _, mu, var, bias = inputs
    ctx.save_for_backward(mu, var, output)
    ctx.bias = bias


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """``P`` is symmetric: ``dL/dv = P G =: U``. With ``H = P v`` and ``dP = -P dA P``, ``dL/dA = -U' H`` per row.

    ``A = [[diag(var) + mu mu', mu], [mu', 1]]`` gives ``dL/dvar = -sum_rows U_w H_w`` and, by the product rule,
    ``dL/dmu = -sum_rows U_w (mu'H_w + H_b) + H_w (mu'U_w + U_b)``; without a bias ``A = diag(var + mu^2)``.
    """
    mu, var, h = ctx.saved_tensors
    u = arrow_solve(grad, mu, var, ctx.bias)  # [..., m, d or d+1]
    mean = mu.unsqueeze(-2) if u.dim() > 1 else mu
    if ctx.bias:
        uw, hw = u[..., :-1], h[..., :-1]
        mu_u = (mean * uw).sum(-1, keepdim=True) + u[..., -1:]
        mu_h = (mean * hw).sum(-1, keepdim=True) + h[..., -1:]
        grad_mu = -(uw * mu_h + hw * mu_u)
    else:
        uw, hw = u, h
        grad_mu = -2 * mean * uw * hw
    grad_var = -uw * hw
    if u.dim() > 1:
        grad_mu, grad_var = grad_mu.sum(-2), grad_var.sum(-2)
    return u, grad_mu.to(mu.dtype), grad_var.to(var.dtype), None


_arrow_solve.register_autograd(_backward, setup_context=_save)


def arrow_solve(v: torch.Tensor, mu: torch.Tensor, var: torch.Tensor, bias: bool = True) -> torch.Tensor:
    """Solve with the arrow matrix ``A = [[diag(var) + mu mu', mu], [mu', 1]]`` for each row ``(w, b)`` of ``v``.

    ``A`` is the second moment of ``[x 1]`` where features have mean ``mu`` and covariance ``diag(var)``. Its exact
    inverse costs one pass (D. Munoz, arXiv:2502.01131): ``w1 = (w - mu b) / var``, ``b1 = b - sum(mu w1)``. Without a
    bias the matrix is ``diag(var + mu^2)``: ``w1 = w / (var + mu^2)``.

    Args:
        v: rows to solve for, ``[..., m, d+1]`` with ``bias`` (last entry ``b``), else ``[..., m, d]``; or one row, 1-D.
        mu: feature means ``[..., d]``, leading dimensions as those of ``v`` before ``m``.
        var: feature variances ``[..., d]``, like ``mu``. They must be positive where the answer is to be finite.
        bias: whether rows of ``v`` end with a bias entry.

    Returns:
        ``A^-1 v``, shape and dtype of ``v``, computed in float32 or wider. Differentiable in ``v``, ``mu``, ``var``.

    Raises:
        TypeError: an argument is no dense floating tensor, or ``bias`` no bool.
        ValueError: shapes or devices do not fit.
    """
    op = "arrow_solve"
    for name, value in (("v", v), ("mu", mu), ("var", var)):
        _checks.floating_tensor(op, name, value)
        _checks.at_least_1d(op, name, value)
        _checks.same_device(op, name, value, "v", v)
    if not isinstance(bias, bool):
        raise TypeError(f"{op}: bias must be True or False, got {bias!r}")
    d = v.shape[-1] - int(bias)
    batch = v.shape[:-2]
    _checks.shape_is(op, "mu", mu, (*batch, d), "leading dimensions and features of v")
    _checks.shape_is(op, "var", var, (*batch, d), "leading dimensions and features of v")
    solved: torch.Tensor = _arrow_solve(v, mu, var, bias)
    return solved
