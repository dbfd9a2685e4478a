"""The ops ``lnb_kernels::newton_schulz`` and ``newton_schulz_root``: schemas, fakes and dispatch.

They have no derivative: they shape steps of an optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels.newton_schulz import reference

_KERNELS = "lnb_kernels.newton_schulz.triton_kernel"
_backend.register("newton_schulz", reference.newton_schulz, triton=f"{_KERNELS}:newton_schulz")
_backend.register(
    "newton_schulz_root",
    reference.newton_schulz_root,
    triton=f"{_KERNELS}:newton_schulz_root",
    native="lnb_kernels.newton_schulz.native_kernel:newton_schulz_root",
    native_cuda="lnb_kernels.newton_schulz.cuda_kernel:newton_schulz_root",
)


@torch.library.custom_op("lnb_kernels::newton_schulz", mutates_args=())
def _newton_schulz(x: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    result: torch.Tensor = _autocast.call("newton_schulz", x, x, coefficients, steps)
    return result


@_newton_schulz.register_fake
def _(x: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("lnb_kernels::newton_schulz_root", mutates_args=())
def _newton_schulz_root(power: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    result: torch.Tensor = _autocast.call("newton_schulz_root", power, power, coefficients, steps)
    return result


@_newton_schulz_root.register_fake
def _(power: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    return power.new_empty(power.shape)


def _checked(op: str, name: str, value: torch.Tensor, coefficients: Sequence[float], steps: int) -> list[float]:
    _checks.floating_tensor(op, name, value)
    if value.dim() < 2:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}; matrices [..., rows, columns] are needed")
    if not isinstance(coefficients, (list, tuple)):
        raise TypeError(f"{op}: coefficients must be three numbers (a, b, c), got {coefficients!r}")
    if len(coefficients) != 3:
        raise ValueError(f"{op}: coefficients={coefficients!r} is not allowed; three numbers (a, b, c) are needed")
    _checks.count(op, "steps", steps)
    return [_checks.number(op, f"coefficients[{i}]", number) for i, number in enumerate(coefficients)]


def newton_schulz(x: torch.Tensor, coefficients: Sequence[float], steps: int) -> torch.Tensor:
    """``steps`` times ``X <- a X + (b A + c A^2) X`` with ``A = X X'``: an odd polynomial of the singular values.

    Products run in the dtype of ``x``, with float32 accumulation on GPUs.

    Args:
        x: matrices ``[..., k, l]``; leading dimensions are a batch. ``k <= l`` is the cheaper side for ``A``.
        coefficients: ``(a, b, c)``.
        steps: number of steps, 0 returns a copy. One costs ``4 k^2 l + 2 k^3`` FLOPs, less where kernels use symmetry.

    Returns:
        Shape and dtype of ``x``. No derivative.

    Raises:
        TypeError: ``x`` is no dense floating tensor, ``steps`` no int, or a coefficient no number.
        ValueError: ``x`` is no matrix, ``steps`` is out of range, or there are not three finite coefficients.
    """
    numbers = _checked("newton_schulz", "x", x, coefficients, steps)
    result: torch.Tensor = _newton_schulz(x.reshape(x.shape[:-2].numel(), *x.shape[-2:]), numbers, steps)
    return result.view(x.shape)


def newton_schulz_root(power: torch.Tensor, coefficients: Sequence[float], steps: int) -> torch.Tensor:
    """The matrix by which :func:`newton_schulz` multiplies an ``X`` with ``X X' = power``, from ``power`` alone.

    The product of the steps' factors ``T = a + b A + c A^2``, ``A`` starting as ``power`` and becoming ``T A T``.

    Args:
        power: symmetric matrices ``[..., n, n]``; leading dimensions are a batch.
        coefficients: ``(a, b, c)``.
        steps: number of steps, 0 gives identities. One costs ``8 n^3`` FLOPs, less where kernels use symmetry.

    Returns:
        Shape and dtype of ``power``. No derivative.

    Raises:
        TypeError: ``power`` is no dense floating tensor, ``steps`` no int, or a coefficient no number.
        ValueError: ``power`` is not square, ``steps`` is out of range, or there are not three finite coefficients.
    """
    op = "newton_schulz_root"
    numbers = _checked(op, "power", power, coefficients, steps)
    if power.shape[-1] != power.shape[-2]:
        raise ValueError(f"{op}: power has shape {tuple(power.shape)}; its last two dimensions must be equal")
    result: torch.Tensor = _newton_schulz_root(
        power.reshape(power.shape[:-2].numel(), *power.shape[-2:]), numbers, steps
    )
    return result.view(power.shape)
