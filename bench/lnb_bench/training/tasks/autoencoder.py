"""Images through a narrow code and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lnb_bench.training import data
from lnb_bench.training.data.splits import Split
from lnb_bench.training.models import Autoencoder
from lnb_bench.training.objectives import Reconstruction
from lnb_bench.training.tasks.base import Task, TaskOptions, choose


@dataclass(frozen=True)
class _Themselves:
    """The inputs of ``split`` as their own targets, ``[n, pixels]``."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        inputs, _ = self.split.batch(indices, device)
        return inputs, inputs.flatten(1)


def autoencoder(options: TaskOptions) -> Task:
    """MNIST through 30 numbers: cross-entropy per pixel, judged by the squared error of an image."""
    choose(options, "autoencoder", ("autoencoder",))
    train, test = data.load_mnist(options.data)
    build = partial(Autoencoder, 28 * 28, **options.take("width", "activation"))
    return Task(
        "autoencoder", _Themselves(train), _Themselves(test), build, Reconstruction(), batch_size=500, steps=2400
    )
