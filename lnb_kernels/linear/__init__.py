"""A linear layer whose backward pass also gives the second moment of its input."""

from __future__ import annotations

from lnb_kernels.linear.op import linear
from lnb_kernels.linear.shared import SharedMoment

__all__ = ["SharedMoment", "linear"]
