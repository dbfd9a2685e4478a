"""Memory that a step works in, kept for the next step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scratch:
    """Host memory for averages that their directions overwrite, kept from step to step.

    New host memory is new pages, which the system clears one by one: for a small model, that took as long as a step of
    AdamW. What is kept is as large as AdamW's second moment of the gradient, in whose place it is. Accelerators need
    none of it: their allocators keep memory themselves.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Parameter, Tensor] = {}

    def take(self, averages: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Tensors like these, of any content; only theirs are kept from now on."""
        self._kept = {p: self._fitting(p, average) for p, average in averages.items()}
        return self._kept

    def _fitting(self, parameter: nn.Parameter, average: Tensor) -> Tensor:
        kept = self._kept.get(parameter)
        if kept is not None and kept.shape == average.shape and kept.dtype == average.dtype:
            return kept
        with torch.inference_mode(False):
            return torch.empty_like(average)
