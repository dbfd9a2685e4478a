"""Log every layer's figures to TensorBoard, or to anything else that has ``add_scalar(name, value, step)``.

Reading the figures waits for the device, so it is done every so many steps, not in each.

    pip install tensorboard
    python bench/tensorboard_example.py [--logs runs/tensorboard]
    tensorboard --logdir runs/tensorboard
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

import lnb
from lnb.demo.batches import Batcher
from lnb_bench.training.tasks import make_task


class Writer(Protocol):
    """What is needed of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int) -> None: ...


def log(writer: Writer, optimizer: lnb.LNB, step: int) -> None:
    """Write the counters and the last step's figures of every layer."""
    for name, value in optimizer.diagnostics(layers=True).items():
        writer.add_scalar(f"lnb/{name}", value, step)


def train(writer: Writer, steps: int = 100, every: int = 10) -> None:
    """Train on scikit-learn's digits and log every ``every`` steps."""
    torch.manual_seed(0)
    task = make_task("digits")
    model = task.build()
    optimizer = lnb.LNB(model, lr=0.01)
    batcher = Batcher(len(task.train), 128, seed=0)
    for step in range(steps):
        inputs, targets = task.train.batch(batcher.indices(step), torch.device("cpu"))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if (step + 1) % every == 0:
            writer.add_scalar("loss", loss.item(), step + 1)
            log(writer, optimizer, step + 1)


def main() -> None:
    """Train, with a SummaryWriter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, default=Path("runs/tensorboard"))
    arguments = parser.parse_args()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        sys.exit("tensorboard is not installed: pip install tensorboard")
    with SummaryWriter(str(arguments.logs)) as writer:
        train(writer)
    print(f"written to {arguments.logs}")


if __name__ == "__main__":
    main()
