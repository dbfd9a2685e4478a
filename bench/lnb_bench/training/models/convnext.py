"""Convolutional network in the manner of transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Depthwise 7x7 convolution, normalisation, two layers over channels, a learned scale, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Images to images of the same shape."""
        rows = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        moved: Tensor = self.scale * self.mlp(rows)
        return x + moved.permute(0, 3, 1, 2)


class _Halving(nn.Module):
    """Normalisation over channels, then a 2x2 convolution of stride 2."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Conv2d(channels, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Images to images of half the sides."""
        halved: Tensor = self.reduce(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return halved


class ConvNeXt(nn.Module):
    """The network of Liu et al. (arXiv:2201.03545) for small images: three stages of ``depth`` blocks, widths 1, 2, 4.

    Weights are normal with standard deviation 0.02, biases zero.

    Args:
        channels: input channels.
        side: height and width of the images, a multiple of 8.
        classes: number of outputs.
        width: channels of the first stage.
        depth: blocks of each stage, >= 1.
    """

    def __init__(self, channels: int, side: int, classes: int, width: int = 32, depth: int = 1) -> None:
        super().__init__()
        if depth < 1 or side % 8:
            raise ValueError(f"depth={depth} must be at least 1, and the image side {side} a multiple of 8")
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 2, stride=2)]
        for stage in range(3):
            wide = width * 2**stage
            layers += [_Halving(wide // 2, wide)] if stage else []
            layers += [_Block(wide) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(wide)
        self.head = nn.Linear(wide, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, side, side]``."""
        logits: Tensor = self.head(self.norm(self.layers(x).mean((2, 3))))
        return logits
