"""Vision transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnb_bench.training.models.transformer import Block, initialise


class ViT(nn.Module):
    """Patches, learned positions, ``depth`` blocks, the mean over tokens, a linear head.

    Args:
        channels: input channels.
        side: height and width of the images, a multiple of ``patch``.
        classes: number of outputs.
        width: size of a token.
        depth: number of blocks.
        heads: attention heads; divides ``width``.
        patch: side of a patch in pixels.
    """

    def __init__(
        self, channels: int, side: int, classes: int, width: int = 128, depth: int = 4, heads: int = 4, patch: int = 4
    ) -> None:
        super().__init__()
        if side % patch:
            raise ValueError(f"patch={patch} must divide the image side {side}")
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.position = nn.Parameter(torch.zeros((side // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        initialise(self, depth)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, side, side]``."""
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        tokens = self.embed(patches) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits
