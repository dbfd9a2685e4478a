"""Character-level language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lnb_bench.training.models.transformer import Block, initialise


class GPT(nn.Module):
    """Token and learned position embeddings, ``depth`` causal blocks, an untied linear head.

    Args:
        vocabulary: number of distinct tokens.
        context: longest sequence.
        width: size of a token's vector.
        depth: number of blocks.
        heads: attention heads; divides ``width``.
    """

    def __init__(self, vocabulary: int, context: int = 128, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        initialise(self, depth)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[n, t, vocabulary]`` of tokens ``[n, t]`` int64, ``t <= context``."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
