"""Preconditioned conjugate gradients in plain PyTorch: the executable specification."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels.arrow.reference import arrow_solve
from lnb_kernels.scaling import unit_scale

STOP = 1e-5  # a scope unit is done where ||r|| <= STOP ||g||

Matvec = Callable[[torch.Tensor], torch.Tensor]


def metric(s: torch.Tensor, size: int, ridge: float) -> torch.Tensor:
    """``A = S / N + ridge diag(1..1, 0)`` for ``size = D+1``, ``S[:D, :D] / N + ridge I`` for ``size = D``.

    ``N = S[-1, -1]``; an ``S`` without samples is all zeros, and so is ``S / N`` then.
    """
    count = s[..., -1:, -1:]
    a = s[..., :size, :size] / torch.where(count == 0, 1, count)
    a[..., : s.shape[-1] - 1, : s.shape[-1] - 1].diagonal(dim1=-2, dim2=-1).add_(ridge)
    return a


def pcg_moment(
    s: torch.Tensor,
    g: torch.Tensor,
    h0: torch.Tensor | None,
    mu: torch.Tensor | None,
    var: torch.Tensor | None,
    iterations: int,
    ridge: float,
    scope: str,
    layer_dims: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PCG on the explicit second moment ``s``; see :func:`lnb_kernels.pcg`."""
    accumulate = accumulation_dtype(torch.promote_types(s.dtype, g.dtype))
    a = metric(s.to(accumulate), g.shape[-1], ridge)
    has_bias = g.shape[-1] == s.shape[-1]
    h, norms = iterate(lambda v: v @ a, g.to(accumulate), h0, mu, var, has_bias, iterations, scope, layer_dims)
    return h.to(g.dtype), norms


def iterate(
    matvec: Matvec,
    g: torch.Tensor,
    h0: torch.Tensor | None,
    mu: torch.Tensor | None,
    var: torch.Tensor | None,
    bias: bool,
    iterations: int,
    scope: str,
    layer_dims: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The iteration for any symmetric ``matvec``, in float32 or wider; see :func:`lnb_kernels.pcg`.

    Vectors are at unit size, so that their products are in the range of the dtype whatever the size of ``g``. Each scope unit
    is switched off by a mask, never by a Python branch: nothing here waits for the device.
    """
    dims = (-1,) if scope == "neuron" else tuple(range(-layer_dims, 0))
    target = g.to(accumulation_dtype(g.dtype))
    start = None if h0 is None else h0.to(target.dtype)
    unit = unit_scale(target, start, matrix_dims=len(dims))
    target = target * unit

    def dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x * y).sum(dims, keepdim=True)

    def precondition(r: torch.Tensor) -> torch.Tensor:
        return r if mu is None or var is None else arrow_solve(r, mu, var, bias)

    if start is None:
        h, r = torch.zeros_like(target), target
    else:
        h = start * unit
        r = target - matvec(h)
    threshold = STOP * dot(target, target).sqrt()
    norms = [dot(r, r).sqrt()]
    z = p = precondition(r)
    rz = dot(r, z)
    for k in range(iterations):
        ap = matvec(p)
        pap = dot(p, ap)
        active = (norms[-1] > threshold) & (pap > 0)
        alpha = torch.where(active, rz / torch.where(active, pap, 1), 0)
        h = h + alpha * p
        r = r - alpha * ap
        norms.append(dot(r, r).sqrt())
        if k + 1 < iterations:
            z, rz_old = precondition(r), rz
            rz = dot(r, z)
            p = z + torch.where(active, rz / torch.where(active, rz_old, 1), 0) * p
    h, residual_norms = h / unit, torch.stack(norms) / unit
    return h.to(g.dtype).contiguous(), residual_norms.reshape(iterations + 1, *g.shape[: g.dim() - len(dims)])
