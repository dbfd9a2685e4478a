"""Products of Newton-Schulz factors on the GPU: a thread block for each matrix, all steps on chip, in one launch."""

from __future__ import annotations

from torch import Tensor

from lnb_kernels import _backend, _cuda
from lnb_kernels.newton_schulz import reference


def newton_schulz_root(power: Tensor, coefficients: list[float], steps: int) -> Tensor:
    """As :func:`lnb_kernels.newton_schulz.reference.newton_schulz_root`; matrices that are too large go by Triton."""
    count, n, _ = power.shape
    native = _cuda.module(power.device)
    if power.numel() == 0 or steps == 0:
        return reference.newton_schulz_root(power, coefficients, steps)
    if n > _cuda.largest_side(power):
        return _by_others(power, coefficients, steps)
    power = power.resolve_neg().contiguous()
    root = power.new_empty(power.shape)
    native.newton_schulz_roots(
        power.data_ptr(), root.data_ptr(), count, n, tuple(coefficients), steps, _cuda.where(power)
    )
    return root


def _by_others(power: Tensor, coefficients: list[float], steps: int) -> Tensor:
    route = _backend.routes()["newton_schulz_root"]
    if power.is_cuda and "triton" not in route.broken:
        try:
            root: Tensor = _backend.load(route, "triton")(power, coefficients, steps)
        except _backend.KernelUnavailable:
            pass
        else:
            return root
    return reference.newton_schulz_root(power, coefficients, steps)
