"""Second moment ``S = [X 1]' [X 1]`` of samples."""

from __future__ import annotations

from lnb_kernels.second_moment.op import second_moment

__all__ = ["second_moment"]
