"""Working memory of a step, kept for the next one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scratch:
    """Memory for directions, and for the averages that they overwrite, kept from step to step.

    New host memory is new pages, which the system clears one by one: for a small model, that took as long as a step of
    AdamW. What is kept is as large as AdamW's second moment of the gradient, in whose place it is. The fused step of a GPU
    keeps its directions here, in 16 bits; other accelerators need none of it: their allocators keep memory themselves.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Parameter, Tensor] = {}

    def take(
        self, averages: dict[nn.Parameter, Tensor], dtype: torch.dtype | None = None
    ) -> dict[nn.Parameter, Tensor]:
        """Tensors like these, of any content, in ``dtype`` or in theirs; only these are kept from now on."""
        self._kept = {p: self._fitting(p, average, dtype or average.dtype) for p, average in averages.items()}
        return self._kept

    def _fitting(self, parameter: nn.Parameter, average: Tensor, dtype: torch.dtype) -> Tensor:
        kept = self._kept.get(parameter)
        if kept is not None and kept.shape == average.shape and kept.dtype == dtype:
            return kept
        with torch.inference_mode(False):
            return torch.empty_like(average, dtype=dtype)
