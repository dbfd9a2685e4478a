"""Convolutional classifier without normalisation layers: the optimizer has to cope with badly scaled features by itself."""

from __future__ import annotations

from torch import Tensor, nn


class CNN(nn.Module):
    """``depth`` times two 3x3 convolutions with ReLU and a halving, with doubling channels; then a linear layer.

    Weights are He-normal and biases zero.

    Args:
        channels: input channels.
        side: height and width of the images, a multiple of ``2 ** depth``.
        classes: number of outputs.
        width: channels at full resolution.
        depth: number of halvings, >= 0.
    """

    def __init__(self, channels: int, side: int, classes: int, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        if side % 2**depth:
            raise ValueError(f"depth={depth}: the image side {side} must be a multiple of {2**depth}")
        layers: list[nn.Module] = []
        for level in range(depth):
            wide = width * 2**level
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels = wide
        layers += [nn.Flatten(), nn.Linear(channels * (side // 2**depth) ** 2, classes)]
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if isinstance(layer, nn.Conv2d) else "linear")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, side, side]``."""
        logits: Tensor = self.layers(x)
        return logits
