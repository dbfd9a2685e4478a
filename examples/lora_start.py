"""Start low-rank adapters where the model's knowledge lies least (CorDA), by what LNB kept while it trained the model.

A model of digits learns inverted digits through adapters of rank 4; its own weights are frozen. From LoRA's usual start it
forgets most upright digits. CorDA's "kpm" start moves the parts of the weights that upright digits need least: it learns more
slowly and forgets less. The layout is that of PEFT's LoRA, whose modules take ``A``, ``B`` and the residual as
``docs/moments.md`` shows.

python examples/lora_start.py [--steps 100]
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
        moment: of its inputs on what is to be kept, for CorDA's start; None for the usual one, in which ``up`` is zero.
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
                start = corda(layer.weight, moment, RANK, method="kpm")
                self.down.weight.copy_(start.A)
                self.up.weight.copy_(start.B)
                self.base.weight.copy_(start.residual)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, in]`` to ``[n, out]``."""
        found: Tensor = self.base(x) + self.up(self.down(x))
        return found


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> lnb.LNB:
    """With a falling rate."""
    optimizer = lnb.LNB(model, lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return optimizer


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that are recognised."""
    return float((model(x).argmax(1) == y).float().mean())


def main(steps: int = 100) -> float:
    """Adapt, and return the share of upright test digits that the model with CorDA's start still recognises."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    x_test, y_test = x[1437:], y[1437:]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    moments = lnb.export_moments(train(model, x[:1437], y[:1437], 150))  # no data: they are the optimizer's state
    lnb.detach(model)
    print(f"before: {accuracy(model, x_test, y_test):.1%} of the upright test digits are recognised")

    left = {}
    for name, start in (("the usual start", None), ("CorDA's start", moments)):
        torch.manual_seed(1)
        adapted = nn.Sequential(
            *(
                Adapted(layer, None if start is None else start[place]) if isinstance(layer, nn.Linear) else layer
                for place, layer in model.named_children()
            )
        )
        torch.testing.assert_close(adapted(x_test), model(x_test), rtol=1e-3, atol=1e-3)
        train(adapted, 1 - x[:1437], y[:1437], steps)
        learnt, left[name] = accuracy(adapted, 1 - x_test, y_test), accuracy(adapted, x_test, y_test)
        print(
            f"adapters of rank {RANK} from {name}: {learnt:.1%} of the inverted, {left[name]:.1%} of the upright ones"
        )
    return left["CorDA's start"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    main(parser.parse_args().steps)
