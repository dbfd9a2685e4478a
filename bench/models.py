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


class _ConvNeXtBlock(nn.Module):
    """A depthwise 7 x 7 convolution and two pointwise linear maps, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(F.gelu(self.widen(y))).permute(0, 3, 1, 2)


def convnext(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """Three depthwise ConvNeXt blocks of 48 channels, images of 32 x 32, batch 16, 10 classes."""
    channels, side = max(2, round(48 * scale)), max(8, round(32 * scale))
    target = torch.randint(0, 10, (16,))
    blocks = [_ConvNeXtBlock(channels) for _ in range(3)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *blocks, *head)
    return model, (torch.rand(16, 3, side, side), lambda y: F.cross_entropy(y, target))


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C', H / stride, W / stride]``."""
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet20(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """ResNet-20 on images of 32 x 32, batch 64, 10 classes."""
    rows, width = max(2, round(64 * scale)), max(2, round(16 * scale))
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage, out in enumerate((width, 2 * width, 4 * width)):
        for i in range(3):
            layers.append(_ResidualBlock(channels, out, 2 if stage > 0 and i == 0 else 1))
            channels = out
    target = torch.randint(0, 10, (rows,))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return model, (torch.rand(rows, 3, 32, 32), lambda y: F.cross_entropy(y, target))


def _gpt(depth: int, width: int, batch: int, tokens: int) -> tuple[nn.Module, Batch]:
    ids, target = torch.randint(0, 128, (batch, tokens)), torch.randint(0, 128, (batch * tokens,))
    blocks = [Block(width, max(1, width // 32), True) for _ in range(depth)]
    model = nn.Sequential(nn.Embedding(128, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 128))
    return model, (ids, lambda y: F.cross_entropy(y.flatten(0, 1), target))


def small_gpt(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """Language model of two blocks, d=64, 16 x 64 tokens."""
    return _gpt(2, 32 * max(1, round(2 * scale)), 16, max(1, round(64 * scale)))


def gpt(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """Language model of four blocks, d=256, 8 x 256 tokens."""
    return _gpt(4, 32 * max(1, round(8 * scale)), 8, max(1, round(256 * scale)))


def small_mlp(scale: float = 1.0) -> tuple[nn.Module, Batch]:
    """64-64-64-10, tanh, batch 128."""
    rows, width = max(1, round(128 * scale)), max(1, round(64 * scale))
    target = torch.randint(0, 10, (rows,))
    model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    return model, (torch.rand(rows, 64), lambda y: F.cross_entropy(y, target))


MODELS: dict[str, Callable[..., tuple[nn.Module, Batch]]] = {
    "transformer": transformer,
    "unet": unet,
    "mlp": mlp,
    "small-gpt": small_gpt,
    "small-mlp": small_mlp,
    "convnext": convnext,
    "gpt": gpt,
    "resnet20": resnet20,
}
