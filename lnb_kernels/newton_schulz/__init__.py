"""Newton-Schulz iterations: the nearest orthogonal matrix and the inverse square root, by products alone."""

from __future__ import annotations

from lnb_kernels.newton_schulz.op import newton_schulz, newton_schulz_root

__all__ = ["newton_schulz", "newton_schulz_root"]
