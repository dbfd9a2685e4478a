"""The op ``lnb_kernels::spd_inverse``: schema, fake and dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels.spd_inverse import reference

_backend.register(
    "spd_inverse",
    reference.spd_inverse,
    native="lnb_kernels.spd_inverse.native_kernel:spd_inverse",
    native_cuda="lnb_kernels.spd_inverse.cuda_kernel:spd_inverse",
)


@torch.library.custom_op("lnb_kernels::spd_inverse", mutates_args=())
def _spd_inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    inverse, failed = _autocast.call("spd_inverse", matrices, matrices)
    return inverse, failed


@_spd_inverse.register_fake
def _(matrices: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(matrices), matrices.new_empty(matrices.shape[:-2], dtype=torch.bool)


def spd_inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses of symmetric positive definite matrices, and where there is none; nothing is raised, no device waited for.

    By ``A = L L'``, ``A^-1 = L^-T L^-1``. Backends read one triangle each, so ``A`` must be symmetric.

    Args:
        matrices: ``[..., n, n]``, float32 or float64.

    Returns:
        ``(inverses, failed)``: ``[..., n, n]``, and bool ``[...]``, True where a matrix is not positive definite in its
        dtype, or not finite: its inverse is then undefined. Not differentiable.

    Raises:
        TypeError: ``matrices`` is no tensor of float32 or float64.
        ValueError: the last two dimensions are not equal.
    """
    op = "spd_inverse"
    _checks.floating_tensor(op, "matrices", matrices)
    if matrices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: matrices are {matrices.dtype}; allowed are float32 and float64")
    if matrices.dim() < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"{op}: matrices has shape {tuple(matrices.shape)}; allowed is [..., n, n]")
    inverse, failed = _spd_inverse(matrices)
    return inverse, failed
