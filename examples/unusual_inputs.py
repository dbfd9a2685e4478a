"""An alarm for inputs that are not like those of the training, from what LNB kept: digits with noise, or upside down.

python examples/unusual_inputs.py [--steps 150]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import lnb
from lnb.moments import DriftMonitor


def main(steps: int = 150) -> float:
    """Train, set the alarm, and return the share of noisy digits that set it off."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    train, test = x[:1437], x[1437:]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = lnb.LNB(model)
    for _ in range(steps):
        rows = torch.randint(1437, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(train[rows]), y[rows]).backward()
        optimizer.step()

    moments = lnb.export_moments(optimizer)
    upside_down = test.view(-1, 8, 8).flip(1).flatten(1)
    shown = {"test digits": test, "with noise": test + 0.3 * torch.randn_like(test), "upside down": upside_down}
    alarms = {}
    with DriftMonitor(model, moments) as monitor, torch.no_grad():
        model(train)
        limit = monitor.score().quantile(0.98)  # one digit in fifty of the training is a false alarm
        for name, inputs in shown.items():
            monitor.reset()
            confident = model(inputs).softmax(1).amax(1) > 0.9
            alarms[name] = float((monitor.score() > limit).float().mean())
            print(f"{name}: alarm for {alarms[name]:.1%}; the model is sure of {confident.float().mean():.1%}")
    return alarms["with noise"] - alarms["test digits"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    main(parser.parse_args().steps)
