"""The models that the benchmarks of a training step share: each with a batch, which is its inputs and the loss of outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnb_bench.training.models import MLP, UNet
from lnb_bench.training.models.transformer import Block

Batch = tuple[Tensor, Callable[[Tensor], Tensor]]


def transformer(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """Two blocks, d=512, 16 x 512 tokens."""
    d, tokens = 64 * round(8 * scale) or 64, max(1, round(512 * scale))
    x, target = torch.randn(16, tokens, d), torch.randn(16, tokens, d)
    return nn.Sequential(Block(d, 8, True), Block(d, 8, True)), (x, lambda y: F.mse_loss(y, target))


def unet(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """16 base channels, images of 64 x 64, batch 8, 11 classes."""
    side = 8 * max(1, round(8 * scale))
    target = torch.randint(0, 11, (8, side, side))
    model = UNet(3, 11, width=max(2, round(16 * scale)))
    return model, (torch.rand(8, 3, side, side), lambda y: F.cross_entropy(y, target))


def mlp(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """784-800-10, batch 1000."""
    rows = max(1, round(1000 * scale))
    target = torch.randint(0, 10, (rows,))
    model = MLP(784, 10, width=max(1, round(800 * scale)))
    return model, (torch.rand(rows, 784), lambda y: F.cross_entropy(y, target))


MODELS: dict[str, Callable[..., tuple[nn.Module, Batch]]] = {"transformer": transformer, "unet": unet, "mlp": mlp}
