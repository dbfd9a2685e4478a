"""Products of Newton-Schulz factors on the CPU: whole matrices handed out to threads, half of every product formed."""

from __future__ import annotations

from torch import Tensor, get_num_threads

from lnb_kernels import _native
from lnb_kernels.newton_schulz import reference

LARGEST = 256
"""Side up to which the native kernel is the faster one: a larger matrix leaves the cache, and keeps all threads busy."""


def newton_schulz_root(power: Tensor, coefficients: list[float], steps: int) -> Tensor:
    """As :func:`lnb_kernels.newton_schulz.reference.newton_schulz_root`; large matrices go by the BLAS."""
    count, n, _ = power.shape
    if n > LARGEST or power.numel() == 0 or steps == 0:
        return reference.newton_schulz_root(power, coefficients, steps)
    power = power.resolve_neg().contiguous()
    root = power.new_empty(power.shape)
    _native.module().newton_schulz_roots(
        power.data_ptr(), root.data_ptr(), count, n, tuple(coefficients), steps, get_num_threads()
    )
    return root
