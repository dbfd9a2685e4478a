"""LNB in a training loop of one's own: handwritten digits, a perceptron, a cosine schedule, and a look at the reports.

pip install '.[cli]'
python examples/own_loop.py [--steps 150]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import lnb


def main(steps: int = 150) -> float:
    """Train, print the reports, and return the share of test digits that are recognised."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    train, test = slice(0, 1437), slice(1437, None)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = lnb.LNB(model)  # the model, not its parameters
    schedule = CosineAnnealingLR(optimizer, steps)
    print(optimizer.coverage())

    for step in range(steps):
        rows = torch.randint(1437, (128,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[train][rows]), y[train][rows])
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    with torch.no_grad():
        accuracy = float((model(x[test]).argmax(1) == y[test]).float().mean())
    print(optimizer.plan())
    print(optimizer.diagnostics())
    print(f"{accuracy:.1%} of the test digits are recognised")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    main(parser.parse_args().steps)
