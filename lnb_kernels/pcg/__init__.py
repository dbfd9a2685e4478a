"""Preconditioned conjugate gradients on second moments."""

from __future__ import annotations

from lnb_kernels.pcg.layers import pcg_layers
from lnb_kernels.pcg.op import pcg

__all__ = ["pcg", "pcg_layers"]
