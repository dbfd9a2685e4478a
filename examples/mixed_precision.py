"""LNB with autocast and gradient accumulation: a small transformer that learns to sort.

Under autocast the layers compute in bfloat16, and second moments are summed in float32. The rows of all backward passes before a
step count: four passes of 32 examples make the step of one pass of 128.

    python examples/mixed_precision.py [--steps 80] [--device cuda]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb

DIGITS, LENGTH, PASSES, BATCH = 8, 6, 4, 32


class Sorter(nn.Module):
    """Reads ``LENGTH`` digits and predicts them in ascending order."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(DIGITS, width)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.head = nn.Linear(width, DIGITS)

    def forward(self, digits: Tensor) -> Tensor:
        """Logits ``[n, LENGTH, DIGITS]`` of digits ``[n, LENGTH]``."""
        x = self.embedding(digits) + self.places
        x = x + self.attention(x, x, x, need_weights=False)[0]
        logits: Tensor = self.head(x + self.mlp(x))
        return logits


def main(steps: int = 80, device: str = "cpu") -> float:
    """Train, and return the share of places that are right."""
    torch.manual_seed(0)
    model = Sorter().to(device)
    optimizer = lnb.LNB(model, lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for _ in range(PASSES):
            digits = torch.randint(DIGITS, (BATCH, LENGTH), device=device)
            with torch.autocast(device, torch.bfloat16):
                logits = model(digits)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), digits.sort(1).values.flatten()) / PASSES
            loss.backward()
            total += loss.detach()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {total.item():.3f}")

    digits = torch.randint(DIGITS, (512, LENGTH), device=device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        accuracy = float((model(digits).argmax(2) == digits.sort(1).values).float().mean())
    print(f"{accuracy:.1%} of the places are right")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.device)
