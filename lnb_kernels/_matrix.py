"""Samples with any leading dimensions, as a matrix."""

from __future__ import annotations

import torch


def as_matrix(x: torch.Tensor) -> torch.Tensor:
    """``x`` ``[..., d]`` as ``[N, d]``; unlike ``reshape(-1, d)`` also for ``d = 0``."""
    if x.dim() == 2:
        return x
    return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
