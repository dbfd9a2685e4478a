"""Matrix-free product of the regularised covariance of samples with vectors."""

from __future__ import annotations

from lnb_kernels.cov_matvec.op import cov_matvec

__all__ = ["cov_matvec"]
