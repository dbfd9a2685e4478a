"""Convolutions: the layer with a moment probe, second moments of patches, and their matrix-free product."""

from __future__ import annotations

from lnb_kernels.conv2d.layer import conv2d
from lnb_kernels.conv2d.op import conv2d_cov_matvec, conv2d_second_moment

__all__ = ["conv2d", "conv2d_cov_matvec", "conv2d_second_moment"]
