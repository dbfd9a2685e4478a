"""Two linear layers: the model of the matrix factorisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Factors(nn.Module):
    """``x -> W2 W1 x`` without biases, Glorot-normal weights.

    Args:
        inputs: columns of ``W1``.
        outputs: rows of ``W2``.
        width: rows of ``W1``, the rank of the product.
        dtype: dtype of the weights.
    """

    def __init__(self, inputs: int, outputs: int, width: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width, bias=False, dtype=dtype)
        self.second = nn.Linear(width, outputs, bias=False, dtype=dtype)
        nn.init.xavier_normal_(self.first.weight)
        nn.init.xavier_normal_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` of inputs ``[n, inputs]``."""
        outputs: Tensor = self.second(self.first(x))
        return outputs
