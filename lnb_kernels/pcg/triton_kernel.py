"""Preconditioned conjugate gradients on a second moment, on the GPU.

For rows ``g`` of ``[m, size]``, ``A = S / N + ridge diag(1..1, 0)`` and the arrow preconditioner ``P``
(:func:`lnb_kernels.arrow_solve`), fused into the vector operations:

    ap = p A,  alpha = <r, z> / <p, ap>,  h += alpha p,  r -= alpha ap,
    z = P r,   beta = <r, z> / <r, z>_old,  p = z + beta p

*One launch* (:mod:`lnb_kernels.pcg.triton_rows`, scope "neuron"): given ``S``, rows do not depend on each other, and a
program makes all iterations of some of them.

*Two phases* (:mod:`lnb_kernels.pcg.triton_phases`, both scopes): a product and an update of the vectors per iteration,
each spread over the whole GPU. :func:`one_launch_pays` is the crossover.

Units that are done are switched off by ``alpha = 0``, never by a branch; results are deterministic.
"""

from __future__ import annotations

import math

import torch

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.launch import MOST_BLOCKS, compiles_or_unavailable, on_device
from lnb_kernels.pcg import reference
from lnb_kernels.pcg.triton_phases import by_phases
from lnb_kernels.pcg.triton_rows import ROWS, by_rows
from lnb_kernels.pcg.triton_vectors import Equation
from lnb_kernels.scaling import unit_scale

LAUNCH_SECONDS = 4e-6  # of a dependent launch, for the crossover


def one_launch_pays(m: int, size: int, batch: int, arch: Arch) -> bool:
    """Whether one launch for all iterations beats two launches per iteration: predicted time of one iteration.

    A program has the tensor cores and L2 share of one multiprocessor; the two-phase form has all of them but pays two
    launches. L2 is taken at 1.6 times the rate of memory, half of the tf32 peak is taken as reachable.
    """
    waves = math.ceil(math.ceil(m / ROWS) * batch / arch.multiprocessors)
    rate = (arch.tf32_rate or arch.ieee_rate) / 2
    per_multiprocessor = 1 / arch.multiprocessors
    one = waves * max(
        2 * ROWS * size * size / (rate * per_multiprocessor),
        4 * size * size / (1.6 * arch.memory_rate * per_multiprocessor),
    )
    two = 2 * LAUNCH_SECONDS + max(2 * batch * m * size * size / rate, 4 * batch * size * size / arch.memory_rate)
    return one <= two


@compiles_or_unavailable("pcg")
def pcg(
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
    """PCG on ``s`` ``[.., D+1, D+1]`` for ``g`` ``[.., m, D or D+1]``; see :func:`lnb_kernels.pcg`."""
    dtypes = [value.dtype for value in (s, g, h0, mu, var) if value is not None]
    if torch.float64 in dtypes or g.numel() == 0 or g.shape[:-2].numel() > MOST_BLOCKS:
        return reference.pcg_moment(s, g, h0, mu, var, iterations, ridge, scope, layer_dims)
    lead, (m, size), moments = g.shape[:-2], g.shape[-2:], s.shape[-1]
    batch, d = lead.numel(), moments - 1
    neuron = scope == "neuron"
    s3 = s.float().expand(*lead, moments, moments).reshape(batch, moments, moments)
    if s3.stride(2) != 1:
        s3 = s3.contiguous()

    def flat(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(batch, -1).float().contiguous()

    # Vectors that share a step length, at unit size: their products are in float32's range.
    shared = batch if neuron else g.shape[: g.dim() - layer_dims].numel()
    vectors = [None if value is None else flat(value).view(shared, -1) for value in (g, h0)]
    unit = unit_scale(*vectors, matrix_dims=1)
    right, start = [None if value is None else (value * unit).view(batch, -1) for value in vectors]
    assert right is not None
    arrow = None if mu is None or var is None else (flat(mu), flat(var))
    equation = Equation(s3, right, start, arrow, batch, m, d, size, iterations, ridge)
    arch = arch_of(g.device)
    with on_device(g):
        if neuron and one_launch_pays(m, size, batch, arch):
            h, norms = by_rows(equation, arch)
        else:
            h, norms = by_phases(equation, arch, neuron, batch * m if neuron else shared)
    shape = g.shape[:-1] if neuron else g.shape[: g.dim() - layer_dims]
    h, norms = h.view(shared, -1) / unit, norms.view(iterations + 1, shared, -1) / unit
    return h.view(g.shape).to(g.dtype), norms.view(iterations + 1, *shape).to(accumulation_dtype(g.dtype))
