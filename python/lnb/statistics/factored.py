"""The metric of a layer as a cached factor: centred, in diagonal blocks, refreshed when the second moment is.

With ``S = E[x~ x~'] + ridge diag(1..1, 0)``, ``x~ = [x 1]``, ``mu = E[x]`` and the covariance
``C = E[x x'] - mu mu' + ridge I``, block elimination of the last row and column of ``S`` gives, for every row ``(w, b)`` of a
gradient, exactly

    ``h_w = C^-1 (w - b mu)``,    ``h_b = b - mu' h_w``        (``h = S^-1 (w, b)``)

so only ``C = L L'`` is factored, and ``C^-1`` or ``L^-1`` is kept. A layer without a bias has ``C = E[x x'] + ridge I`` and
``mu = 0``. For wide inputs only equal diagonal blocks of ``C`` are formed; the mean stays exact, so that the step still does
not depend on an offset of the inputs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels.cholesky import cholesky_inverse, triangular_solve
from lnb_kernels.two_sided.reference import times_blocks

_NEAR = 4
_STRETCH = 4
_FEW = 16
"""How much smaller and larger than asked for blocks may be, and how much smaller parts of a kernel.

On GPUs blocks above the usual size are left to slower code: a divisor that is not much smaller is preferred."""


@dataclass(frozen=True)
class Factor:
    """``L^-1`` or ``C^-1``, and ``mu``, of one or more layers (leading dimensions ``...``).

    Attributes:
        matrix: ``[..., blocks, size, size]``, ``blocks * size = d_in``: ``L^-1`` for :meth:`whiten` and :meth:`unwhiten`,
            ``C^-1`` for :meth:`solve`.
        mean: ``mu``, ``[..., d_in]``; None for layers without a bias.
    """

    matrix: Tensor
    mean: Tensor | None

    def solve(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``h = g~ S^-1`` of weight ``[..., rows, d_in]`` and bias ``[..., rows, 1]``, with ``matrix = C^-1``."""
        if bias is None or self.mean is None:
            return self.solve_centred(weight), None
        step = self.solve_centred(torch.addcmul(weight, bias, self.mean.unsqueeze(-2), value=-1))
        return step, bias - step @ self.mean.unsqueeze(-1)

    def solve_centred(self, weight: Tensor) -> Tensor:
        """``w C^-1`` of rows ``[..., rows, d_in]`` from which the bias's share of the mean is taken."""
        return times_blocks(weight, self.matrix)

    def whiten(self, gradient: Tensor) -> Tensor:
        """``g~ L~^-T``, ``[..., rows, columns]``: the gradient with respect to the layer as a function of white inputs."""
        if self.mean is None:
            return times_blocks(gradient, self.matrix.mT)
        return torch.cat([times_blocks(self._centre(gradient), self.matrix.mT), gradient[..., -1:]], dim=-1)

    def unwhiten(self, white: Tensor) -> Tensor:
        """``D~ L~^-1``, ``[..., rows, columns]``: a step of the white layer as one of the layer."""
        if self.mean is None:
            return times_blocks(white, self.matrix)
        return self._with_bias(times_blocks(white[..., :-1], self.matrix), white[..., -1:])

    def _centre(self, gradient: Tensor) -> Tensor:
        """``w - b mu`` of every row."""
        assert self.mean is not None
        return torch.addcmul(gradient[..., :-1], gradient[..., -1:], self.mean.unsqueeze(-2), value=-1)

    def _with_bias(self, weight: Tensor, bias: Tensor) -> Tensor:
        """``(w, b - mu' w)`` of every row."""
        assert self.mean is not None
        return torch.cat([weight, bias - weight @ self.mean.unsqueeze(-1)], dim=-1)


def factorize(second_moment: Tensor, ridge: float | Tensor, with_bias: bool, inverse: bool) -> Factor:
    """Factor the metric.

    A factorisation that fails (the covariance is not positive definite in this precision) is repeated with a ridge
    that is larger by the mean diagonal, then replaced by the diagonal alone; on accelerators all three are computed
    and the choice is made on the device.

    Args:
        second_moment: diagonal blocks of ``E[x~ x~']``, each with the column of ones, ``[groups, blocks, size+1, size+1]``,
            last entries 1.
        ridge: added to the diagonal of the covariance: a number, or one per group ``[groups, 1, 1, 1]``.
        with_bias: whether the bias takes part.
        inverse: keep ``C^-1`` instead of ``L^-1``.
    """
    product, mean = second_moment[..., :-1, :-1], second_moment[..., -1, :-1]
    covariance = product - mean.unsqueeze(-1) * mean.unsqueeze(-2) if with_bias else product
    diagonal = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    average = diagonal.mean(dim=(-2, -1), keepdim=True).unsqueeze(-1)
    # At least so much that the inverse is a number: it matters where inputs are too small to be squared.
    added = (torch.zeros_like(average) + ridge).clamp(min=torch.finfo(average.dtype).tiny ** 0.75)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    covariance = covariance + added * eye
    mean_kept = mean.flatten(-2) if with_bias else None
    on_cpu = covariance.device.type == "cpu"

    def stronger() -> Tensor:
        return covariance + (average + torch.finfo(eye.dtype).eps) * eye

    def own() -> Tensor:
        return (diagonal + added.squeeze(-1)).clamp(min=torch.finfo(eye.dtype).tiny)

    if inverse:
        inverses, undone = lk.spd_inverse(covariance)
        if not on_cpu:
            second, undone_again = lk.spd_inverse(stronger())
            second = torch.where(undone_again[..., None, None], torch.diag_embed(own().reciprocal()), second)
            return Factor(torch.where(undone[..., None, None], second, inverses), mean_kept)
        if not bool(undone.any()):
            return Factor(inverses, mean_kept)
    lower, failed = _try_cholesky(covariance)
    if not on_cpu or bool(failed.any()):
        second, failed_again = _try_cholesky(stronger())
        second = torch.where(failed_again, torch.diag_embed(own().sqrt()), second)
        lower = torch.where(failed, second, lower)
    if inverse:
        return Factor(cholesky_inverse(lower), mean_kept)
    return Factor(triangular_solve(lower, eye.expand_as(lower)), mean_kept)


def _try_cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The factor, and where it failed ``[..., 1, 1]``."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    failed = (info != 0) | ~torch.isfinite(lower).all(dim=(-2, -1))
    return lower, failed.unsqueeze(-1).unsqueeze(-1)


@functools.lru_cache(maxsize=4096)  # every step asks for every layer
def block_count(d_in: int, limit: int | None) -> int:
    """The fewest equal blocks of at most ``limit`` inputs, if they hold at least a quarter of it.

    Where ``d_in`` has no such divisor, the smallest one above ``limit`` serves, up to ``_STRETCH`` times it. Beyond, a
    block's cube would cost more than the layer, and of a vocabulary of 50257 even its square: then the largest one below
    serves, which for a large prime is 1.
    """
    if limit is None or d_in <= limit:
        return 1
    close = range(limit, max(1, limit // _NEAR) - 1, -1)
    larger = range(limit + 1, _STRETCH * limit + 1)
    smaller = range(limit // _NEAR, 0, -1)
    size: int = next(size for size in (*close, *larger, *smaller) if d_in % size == 0)
    return d_in // size


def tap_parts(kernel: tuple[int, int], limit: int) -> int:
    """The equal parts that the taps of a channel are cut into, of a kernel of more than ``limit``: whole rows or parts of one.

    The fewest of at most ``limit`` taps, if they hold at least a sixteenth of it. Other kernels, with sides that are large
    primes, are cut as :func:`block_count` cuts: the parts are the smallest above ``limit``, or else the largest below.
    """
    rows, columns = kernel
    sizes = [row * columns for row in _divisors(rows)] + _divisors(columns)
    below = max(size for size in sizes if size <= limit)
    above = min(size for size in (*sizes, math.inf) if size > limit)
    size = below if _FEW * below >= limit or above > _STRETCH * limit else int(above)
    return rows * columns // size


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
