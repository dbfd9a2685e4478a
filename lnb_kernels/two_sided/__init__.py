"""Directions of the trust region "two_sided"."""

from __future__ import annotations

from lnb_kernels.two_sided.op import two_sided_directions_

__all__ = ["two_sided_directions_"]
