"""Watch a training: the gain of every layer, and the condition, rank and dead inputs of what it sees, live in another terminal.

    python examples/watch_training.py [--steps 200] [--folder runs/watched]
    lnb watch runs/watched

The inputs are handwritten digits. Some pixels are black in all of them, and some units of the first layer start so low that they
never open: the table shows both as dead inputs. TensorBoard gets the same figures, where it is installed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import lnb
from lnb.integrations.watch import Watch
from lnb.reports.watch_file import NAME, Tail


def main(steps: int = 200, folder: Path | None = None) -> float:
    """Train, and return the share of the closed units that the watch found."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    first = model[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.bias[:16] = -100.0
    optimizer = lnb.LNB(model, lr=0.05)

    with tempfile.TemporaryDirectory() as temporary:
        logs = folder or Path(temporary)
        with Watch(optimizer, logs, every=10, tensorboard=None if folder else False) as watch:
            for _ in range(steps):
                rows = torch.randint(len(x), (128,))
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                watch.note(loss=loss)
                optimizer.step()
        latest = Tail(logs / NAME).read()[-1]  # what `lnb watch` shows

    print(f"step {latest.step}: loss {latest.run['loss']:.3f}")
    for layer, figures in latest.layers.items():
        rank, inputs, dead = (int(figures[name]) for name in ("input_rank", "inputs", "dead_inputs"))
        print(f"layer {layer}: rank {rank} of {inputs} inputs, {dead} dead, condition {figures['input_condition']:.1e}")
    return latest.layers["2"]["dead_inputs"] / 16


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/watched"))
    arguments = parser.parse_args()
    main(arguments.steps, arguments.folder)
