"""Quantise a model to 2 bits by what LNB kept while it trained: GPTQ without calibration data.

python examples/quantise_without_data.py [--steps 150]
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lnb
from lnb.moments import quantize


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that are recognised."""
    return float((model(x).argmax(1) == y).float().mean())


def main(steps: int = 150) -> float:
    """Train and quantise; return the share of test digits that the quantised model recognises."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    train, test = slice(0, 1437), slice(1437, None)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = lnb.LNB(model)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        rows = torch.randint(1437, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[train][rows]), y[train][rows]).backward()
        optimizer.step()
        schedule.step()

    moments = lnb.export_moments(optimizer)  # no data: they are the optimizer's state
    rounded, made_good = copy.deepcopy(model), copy.deepcopy(model)
    quantize(rounded, moments, bits=2, method="nearest")
    found = quantize(made_good, moments, bits=2)
    for name, layer in found.items():
        assert layer.error is not None
        assert layer.rounding_error is not None
        print(f"layer {name}: squared error of its outputs {layer.error:.3f}, by rounding {layer.rounding_error:.3f}")
    reached = accuracy(made_good, x[test], y[test])
    print(
        f"test digits recognised: {accuracy(model, x[test], y[test]):.1%}; in 2 bits by GPTQ {reached:.1%}, "
        f"by rounding {accuracy(rounded, x[test], y[test]):.1%}"
    )
    return reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    main(parser.parse_args().steps)
