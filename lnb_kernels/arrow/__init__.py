"""Inverse of the arrow-shaped second moment: a diagonal covariance, the mean and a column of ones."""

from __future__ import annotations

from lnb_kernels.arrow.op import arrow_solve

__all__ = ["arrow_solve"]
