"""``FlopCounterMode`` that also sees the products inside our ops, which it takes as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _newton_schulz(x: Sequence[int], coefficients: list[float], steps: int, *_: Any, **__: Any) -> int:
    batch, k, l = x
    return batch * steps * (4 * k * k * l + 2 * k**3)


def _newton_schulz_root(power: Sequence[int], coefficients: list[float], steps: int, *_: Any, **__: Any) -> int:
    """Four products a step, but one in the first (``A^2``) and no next ``A`` in the last."""
    batch, n, _n = power
    return batch * max(0, 8 * steps - 6) * n**3


def _two_sided_directions(
    weights: Any, _biases: Any, inverses: Any, _means: Any, roots: Any, *_: Any, **__: Any
) -> int:
    """Two block products per weight; those with vectors are not counted."""
    return sum(2 * math.prod(w) * (c[-1] + p[-1]) for w, c, p in zip(weights, inverses, roots, strict=True))


def count_flops() -> FlopCounterMode:
    """A counter of the FLOPs of matrix products."""
    ops = torch.ops.lnb_kernels
    formulas = {
        ops.newton_schulz: _newton_schulz,
        ops.newton_schulz_root: _newton_schulz_root,
        ops.two_sided_directions_: _two_sided_directions,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)
