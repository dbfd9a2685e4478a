"""Modules that random models are made of, beside PyTorch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Recomputes what is within it in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """As the inner module."""
        found: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return found


class Residual(nn.Module):
    """Adds its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and what the inner module makes of it."""
        return x + self.inner(x)


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` of a sequence to itself, or to its reversed other self."""

    def __init__(self, width: int, heads: int, crossed: bool, **options: Any) -> None:
        super().__init__()
        self.crossed = crossed
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, positions, width]``."""
        other = x.flip(1) if self.crossed else x
        found: Tensor = self.attention(x, other, other, need_weights=not self.crossed)[0]
        return found


class Recurrent(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, positions, width]``."""
        found: Tensor = self.inner(x)[0]
        return found


class ComplexLayer(nn.Module):
    """A linear layer with complex weights, of which the real part goes on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]``."""
        found: Tensor = self.inner(x.to(torch.complex64)).real.to(x.dtype)
        return found


class Unused(nn.Module):
    """Holds a layer that no pass reaches."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return x
