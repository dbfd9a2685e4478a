"""LNB with convolutions: a small UNet that finds discs in noisy images whose brightness is far from zero.

python examples/small_unet.py [--steps 60]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb


class UNet(nn.Module):
    """Two halvings of the resolution, and back with the features of the way down."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.top = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(width * n, 2 * width * n, 3, padding=1) for n in (1, 2))
        self.up = nn.ModuleList(nn.Conv2d(3 * width * n, width * n, 3, padding=1) for n in (2, 1))
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, 2, H, W]`` of images ``[n, 1, H, W]``; H and W are divisible by 4."""
        x = F.relu(self.top(x))
        passed = []
        for layer in self.down:
            passed.append(x)
            x = F.relu(layer(F.max_pool2d(x, 2)))
        for layer in self.up:
            x = F.relu(layer(torch.cat([F.interpolate(x, scale_factor=2), passed.pop()], 1)))
        logits: Tensor = self.out(x)
        return logits


def discs(count: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Images ``[count, 1, side, side]`` with a disc each, in noise, and the mask ``[count, side, side]`` of the discs."""
    place = torch.arange(side)
    centre, radius = side * (0.2 + 0.6 * torch.rand(count, 2, 1, 1)), side * (0.1 + 0.15 * torch.rand(count, 1, 1))
    mask = (place - centre[:, 0]) ** 2 + (place[:, None] - centre[:, 1]) ** 2 < radius**2
    return (3 + mask[:, None] + 0.7 * torch.randn(count, 1, side, side)), mask.long()


def main(steps: int = 60) -> float:
    """Train, and return the overlap of found and true discs (intersection over union)."""
    torch.manual_seed(0)
    model = UNet()
    optimizer = lnb.LNB(model)
    for step in range(steps):
        images, masks = discs(16)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), masks)
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    images, masks = discs(128)
    with torch.no_grad():
        found = model(images).argmax(1)
    overlap = float((found & masks).sum() / (found | masks).sum())
    print(f"overlap of found and true discs: {overlap:.2f}")
    return overlap


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
