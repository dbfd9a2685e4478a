"""The models that the meter runs, at their real widths: on the meta device, and by ``make gpu`` on a real one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model and a loss of it.

    Attributes:
        model: makes it, on PyTorch's default device.
        loss: of a batch, on the model's device.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]


class _Attention(nn.Module):
    def __init__(self, d: int, heads: int, packed: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        widths = [3 * d] if packed else [d, d, d]
        self.inputs = nn.ModuleList([nn.Linear(d, width) for width in widths])
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, tokens, d]`` to the same."""
        parts = [layer(x) for layer in self.inputs]
        q, k, v = parts[0].chunk(3, -1) if len(parts) == 1 else parts
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        # The operator that a GPU runs: on meta tensors PyTorch's own choice is a chain of plain products.
        y = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, self.causal)[0]
        return self.out(y.transpose(1, 2).flatten(-2))


class _Block(nn.Module):
    def __init__(self, d: int, heads: int, packed: bool, causal: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])
        self.attention = _Attention(d, heads, packed, causal)
        self.widen, self.narrow = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, tokens, d]`` to the same."""
        x = x + self.attention(self.norms[0](x))
        return x + self.narrow(F.gelu(self.widen(self.norms[1](x))))


class GPT(nn.Module):
    """GPT-2 of 124 million parameters: 12 blocks of 768, a vocabulary of 50,257 whose embedding is the head too."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50257, 768), nn.Embedding(1024, 768)
        self.blocks = nn.Sequential(*(_Block(768, 12, packed, True) for _ in range(12)))
        self.norm = nn.LayerNorm(768)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, length]`` to ``[batch, length, vocabulary]``."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions(places)))
        return F.linear(x, self.tokens.weight)


class ViT(nn.Module):
    """ViT-B/16 for images of 224 x 224 and 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.places = nn.Parameter(torch.zeros(1, 196, 768))
        self.blocks = nn.Sequential(*(_Block(768, 12, True, False) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, 3, 224, 224]`` to ``[batch, 1000]``."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        changes = stride != 1 or channels != out
        shortcut = (nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, 4 width, H / stride, W / stride]``."""
        return F.relu(self.layers(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50 for images of 224 x 224 and 1,000 classes."""
    parts: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for i in range(count):
            parts.append(_Bottleneck(channels, width, 2 if stage and i == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def _unet() -> nn.Module:
    from lnb_bench.training.models import UNet

    return UNet(3, 11, width=64)


def _odd() -> nn.Module:
    """Widths that are primes above 144, or multiples of one: their diagonal blocks are larger than usual."""
    widths = (257, 514, 151, 1028, 257)
    layers = [(nn.Linear(*pair), nn.GELU()) for pair in itertools.pairwise(widths)]
    return nn.Sequential(*(part for pair in layers for part in pair))


def _regression(model: nn.Module) -> Tensor:
    return model(torch.zeros(4096, 257, device=_where(model))).float().square().mean()


def _where(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _language(model: nn.Module) -> Tensor:
    tokens = torch.zeros(16, 1024, dtype=torch.long, device=_where(model))
    return F.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())


def _classes(batch: int, side: int, classes: int = 1000) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        images = torch.zeros(batch, 3, side, side, device=_where(model))
        labels = torch.zeros(batch, dtype=torch.long, device=images.device)
        return F.cross_entropy(model(images).float(), labels)

    return loss


def _segmentation(model: nn.Module) -> Tensor:
    images = torch.zeros(32, 3, 128, 128, device=_where(model))
    labels = torch.zeros(32, 128, 128, dtype=torch.long, device=images.device)
    return F.cross_entropy(model(images).float(), labels)


CASES = {
    "GPT-2 124M": Case(lambda: GPT(True), _language),
    "GPT-2 124M, q k v apart": Case(lambda: GPT(False), _language),
    "ViT-B/16": Case(ViT, _classes(128, 224)),
    "ResNet-50": Case(resnet50, _classes(256, 224)),
    "UNet 64": Case(_unet, _segmentation),
    "Odd widths": Case(_odd, _regression),
}
