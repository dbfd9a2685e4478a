"""Start low-rank adapters where the inputs of the new task matter most (CorDA), and train them with LNB.

A model of digits learns inverted digits through adapters of rank 4; its own weights are frozen. The layout is that of PEFT's
LoRA, whose modules take ``A``, ``B`` and the residual as ``docs/moments.md`` shows.

python examples/lora_start.py [--steps 60]
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lnb
from lnb.moments import LayerMoment, corda

RANK = 4


class Adapted(nn.Module):
    """``base(x) + up(down(x))``; the base is frozen.

    Args:
        layer: that is adapted.
        moment: of its inputs on the new task, for CorDA's start; None for the usual one, in which ``up`` is zero.
    """

    def __init__(self, layer: nn.Linear, moment: LayerMoment | None) -> None:
        super().__init__()
        self.base = copy.deepcopy(layer).requires_grad_(False)
        self.down = nn.Linear(layer.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, layer.out_features, bias=False)
        with torch.no_grad():
            if moment is None:
                self.up.weight.zero_()
            else:
                start = corda(layer.weight, moment, RANK)
                self.down.weight.copy_(start.A)
                self.up.weight.copy_(start.B)
                self.base.weight.copy_(start.residual)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, in]`` to ``[n, out]``."""
        found: Tensor = self.base(x) + self.up(self.down(x))
        return found


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """With a falling rate."""
    optimizer = lnb.LNB(model)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    lnb.detach(model)


def main(steps: int = 100) -> float:
    """Adapt, and return the share of inverted test digits that the model with CorDA's start recognises."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    train(model, x[:1437], y[:1437], 150)

    inverted = 1 - x
    moments = lnb.gather_moments(model, [inverted[:1437]])
    reached = {}
    for name, start in (("the usual start", None), ("CorDA's start", moments)):
        torch.manual_seed(1)
        adapted = nn.Sequential(
            *(
                Adapted(layer, None if start is None else start[place]) if isinstance(layer, nn.Linear) else layer
                for place, layer in model.named_children()
            )
        )
        with torch.no_grad():
            torch.testing.assert_close(adapted(inverted), model(inverted), rtol=1e-3, atol=1e-3)
        train(adapted, inverted[:1437], y[:1437], steps)
        with torch.no_grad():
            reached[name] = float((adapted(inverted[1437:]).argmax(1) == y[1437:]).float().mean())
        print(f"inverted test digits recognised, adapters of rank {RANK} from {name}: {reached[name]:.1%}")
    return reached["CorDA's start"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    main(parser.parse_args().steps)
