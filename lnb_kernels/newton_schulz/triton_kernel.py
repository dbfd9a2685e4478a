"""Newton-Schulz iterations on the GPU: every symmetric product by its lower tiles, batched over matrices.

``X X'``, ``b A + c A^2`` and, for the root, products of polynomials of one symmetric matrix (which commute, so they are
symmetric too) are the Gram kernel (:mod:`lnb_kernels._triton.gram`) without the ones column: half the FLOPs of plain products,
with ``b A`` added in the epilogue. Only ``T X`` is a full product, and stays the vendor's. FLOPs of one step of
``X`` ``[k, l]``: ``k^2 l + k^3 + 2 k^2 l`` instead of ``4 k^2 l + 2 k^3``; of the root ``4 n^3`` instead of ``8 n^3``.
"""

from __future__ import annotations

import torch

from lnb_kernels._triton.crossover import symmetric_products_pay
from lnb_kernels._triton.descriptors import loads_in_vectors
from lnb_kernels._triton.gram_launch import launch_gram
from lnb_kernels._triton.launch import compiles_or_unavailable
from lnb_kernels.newton_schulz import reference


def _symmetric(
    x: torch.Tensor,
    other: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> torch.Tensor:
    """``alpha other' x + beta c``, symmetric, for ``[batch, n, d]``; ``other`` None is ``x``."""
    batch, _, d = x.shape
    out = x.new_empty((batch, d, d))
    launch_gram(x, out, other=other, c=c, ones=False, alpha=alpha, beta=beta)
    return out


@compiles_or_unavailable("newton_schulz")
def newton_schulz(x: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    """``steps`` Newton-Schulz steps of ``x`` ``[batch, k, l]``; see :func:`lnb_kernels.newton_schulz`."""
    if steps == 0 or x.numel() == 0 or not symmetric_products_pay(x.shape[1]):
        return reference.newton_schulz(x, coefficients, steps)
    a, b, c = coefficients
    for _ in range(steps):
        # Columns at odd addresses are loaded element by element: a copy by rows costs less.
        rows = x.mT if loads_in_vectors(x.mT) else x.mT.contiguous()
        gram = _symmetric(rows)
        x = torch.baddbmm(x, _symmetric(gram, c=gram, alpha=c, beta=b), x, beta=a)
    return x


@compiles_or_unavailable("newton_schulz_root")
def newton_schulz_root(power: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    """The root's factors multiplied, ``power`` ``[batch, n, n]``; see :func:`lnb_kernels.newton_schulz_root`."""
    if steps == 0 or power.numel() == 0 or not symmetric_products_pay(power.shape[1]):
        return reference.newton_schulz_root(power, coefficients, steps)
    a, b, c = coefficients
    power = power.contiguous()
    root = power
    for step in range(steps):
        factor = _symmetric(power, c=power, alpha=c, beta=b)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        root = factor if step == 0 else _symmetric(root, factor)
        if step < steps - 1:
            power = _symmetric(_symmetric(power, factor), factor)
    return root
