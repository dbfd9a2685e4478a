"""Residual network with batch normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions, each normalised, added to the (projected) input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Images to images; a stride of 2 halves their sides."""
        inner = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """The network of He et al. (arXiv:1512.03385) for small images: three stages of ``depth`` blocks, widths 1, 2, 4.

    Weights are He-normal by outputs.

    Args:
        channels: input channels.
        side: height and width of the images, a multiple of 4.
        classes: number of outputs.
        width: channels of the first stage.
        depth: blocks of each stage, >= 1; depth 3 is ResNet-20.
    """

    def __init__(self, channels: int, side: int, classes: int, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        if depth < 1 or side % 4:
            raise ValueError(f"depth={depth} must be at least 1, and the image side {side} a multiple of 4")
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        wide = width
        for stage in range(3):
            for place in range(depth):
                blocks.append(_Block(wide, width * 2**stage, 2 if stage and not place else 1))
                wide = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(wide, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, side, side]``."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits
