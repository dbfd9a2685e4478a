"""Inverses of symmetric positive definite matrices."""

from __future__ import annotations

from lnb_kernels.spd_inverse.op import spd_inverse

__all__ = ["spd_inverse"]
