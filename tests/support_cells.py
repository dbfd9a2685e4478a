"""The layers and precisions that the support page lists, each pair of which ``tests/docs/test_support.py`` trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Queries, keys and values of one tensor, and the output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, length, 8]``, as the input."""
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


@dataclass(frozen=True)
class Layer:
    """What is trained.

    Attributes:
        make: the layer.
        shape: of its input; None for tokens.
        metric: what ``coverage()`` must say of its first parameter.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    metric: str = "second moment"


@dataclass(frozen=True)
class Precision:
    """How it is trained.

    Attributes:
        dtype: of parameters and inputs.
        autocast: dtype under autocast, or None.
        master: with ``master_weights``.
        tolerance: of the change of the parameters against float64's, relative to its norm, beside the rounding of the parameters
            themselves: about twice the largest error among the layers.
    """

    dtype: torch.dtype
    autocast: torch.dtype | None = None
    master: bool = False
    tolerance: float = 1e-6


LAYERS = {
    "`nn.Linear`": Layer(lambda: nn.Linear(6, 5), (24, 6)),
    "`nn.Linear` of sequences, no bias": Layer(lambda: nn.Linear(6, 5, bias=False), (4, 7, 6)),
    "`nn.Conv1d`, strided, dilated": Layer(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (6, 4, 13)),
    "`nn.Conv2d`": Layer(lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 4, 7, 7)),
    "`nn.Conv2d`, strided, padding reflect": Layer(
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"), (6, 4, 9, 9)
    ),
    "`nn.Conv2d`, grouped": Layer(lambda: nn.Conv2d(4, 6, 3, groups=2), (6, 4, 7, 7)),
    "`nn.Conv2d`, depthwise": Layer(lambda: nn.Conv2d(4, 4, 3, groups=4), (6, 4, 7, 7)),
    "`nn.MultiheadAttention`": Layer(SelfAttention, (4, 6, 8)),
    "`nn.Embedding`": Layer(lambda: nn.Embedding(9, 5), None, "adamw"),
    "`nn.LayerNorm`": Layer(lambda: nn.LayerNorm(6), (24, 6), "adamw"),
}

PRECISIONS = {
    "float64": Precision(torch.float64),
    "float32": Precision(torch.float32, tolerance=5e-4),
    "autocast bfloat16": Precision(torch.float32, autocast=torch.bfloat16, tolerance=0.1),
    "autocast float16": Precision(torch.float32, autocast=torch.float16, tolerance=0.05),
    "bfloat16": Precision(torch.bfloat16, tolerance=0.05),
    "bfloat16, master weights": Precision(torch.bfloat16, master=True, tolerance=0.05),
    "float16": Precision(torch.float16, tolerance=0.02),
    "float16, master weights": Precision(torch.float16, master=True, tolerance=0.02),
}
