"""Directions of the trust region "balanced"."""

from __future__ import annotations

from lnb_kernels.balanced.op import balanced_directions_

__all__ = ["balanced_directions_"]
