"""UNet without normalisation layers: the optimizer has to cope with badly scaled features by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _double_convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Encoder of ``depth`` halvings with doubling channels, and a decoder with skip connections.

    Weights are He-normal and biases zero.

    Args:
        channels: input channels.
        classes: output channels.
        width: channels at full resolution.
        depth: number of halvings; height and width of an input are multiples of ``2 ** depth``.
    """

    def __init__(self, channels: int, classes: int, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.down = nn.ModuleList(
            _double_convolution(c_in, c_out) for c_in, c_out in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _double_convolution(deep + skip, skip) for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is self.head else "relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes, H, W]`` of images ``[n, channels, H, W]``."""
        if any(side % 2**self.depth for side in x.shape[-2:]):
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} pixels: height and width must be multiples of {2**self.depth}"
            )
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits
