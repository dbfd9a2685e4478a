"""Merge two models, each of which knows half of the digits, by RegMean from what LNB kept while it trained them.

python examples/merge_models.py [--steps 150]
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lnb
from lnb.moments import regmean


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> lnb.moments.Moments:
    """Train ``model``, and give the second moments of its layers' inputs."""
    optimizer = lnb.LNB(model)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return lnb.export_moments(optimizer)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that are recognised."""
    return float((model(x).argmax(1) == y).float().mean())


def main(steps: int = 150) -> float:
    """Train two models and merge them; return the share of all test digits that the merged one recognises."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    (x, test_x), (y, test_y) = x.split([1437, 360]), y.split([1437, 360])
    start = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    low, high = copy.deepcopy(start), copy.deepcopy(start)  # models to merge share a start
    moments = [trained(low, x[y < 5], y[y < 5], steps), trained(high, x[y >= 5], y[y >= 5], steps)]

    merged, average = copy.deepcopy(start), copy.deepcopy(start)
    merged.load_state_dict(regmean([low, high], moments))
    states = low.state_dict(), high.state_dict()
    average.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    reached = accuracy(merged, test_x, test_y)
    for name, model in (("0 to 4 alone", low), ("5 to 9 alone", high), ("average of both", average)):
        print(f"test digits recognised by the model of {name}: {accuracy(model, test_x, test_y):.1%}")
    print(f"by RegMean: {reached:.1%}")
    return reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    main(parser.parse_args().steps)
