"""The problems of the demonstration, which need no files: scikit-learn's digits, and an ill-conditioned factorisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEST_DIGITS = 360
MATRIX_SHAPE = (10, 6)  # outputs, inputs


@dataclass(frozen=True)
class Problem:
    """Everything a run needs except the optimizer.

    Attributes:
        train: inputs and targets to train on.
        test: inputs and targets to judge by.
        build: makes a fresh model; draws from torch's global generator.
        loss: the mean over a batch to minimise, from outputs and targets.
        figure: the figure of merit of outputs and targets.
        metric: the name of that figure.
        higher_is_better: whether a larger figure is the better one.
        batch_size: examples per step.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    figure: Callable[[Tensor, Tensor], Tensor]
    metric: str
    higher_is_better: bool
    batch_size: int


def digit_images() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits: images ``[N, 1, 8, 8]`` and labels ``[N]``, both uint8, pixels from 0 to 16.

    The images have their writers in order: the last :data:`TEST_DIGITS` are by writers who wrote none of the others.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    return images, torch.from_numpy(bunch.target.astype(np.uint8))


def digits(invert: bool) -> Problem:
    """Classify digits, with ``invert`` on inverted images, by a perceptron with one hidden layer of 128 units.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    images, labels = digit_images()
    pixels, targets = images.float() / 16, labels.long()
    x = 1 - pixels if invert else pixels
    return Problem(
        train=(x[:-TEST_DIGITS], targets[:-TEST_DIGITS]),
        test=(x[-TEST_DIGITS:], targets[-TEST_DIGITS:]),
        build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10)).apply(_glorot),
        loss=F.cross_entropy,
        figure=lambda logits, y: (logits.argmax(-1) == y).double().mean(),
        metric="accuracy",
        higher_is_better=True,
        batch_size=128,
    )


def matrix_data(condition: float) -> tuple[Tensor, Tensor]:
    """Inputs ``x`` ``[1000, 6]`` and targets ``A x`` ``[1000, 10]`` in float64, the same in every call.

    ``A`` has random orthonormal singular vectors and singular values that fall geometrically from 1 to ``1 / condition``;
    ``x`` is standard normal. After the experiment of arXiv:2502.01131, figure 1.
    """
    inputs = MATRIX_SHAPE[1]
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, inputs, dtype=torch.float64, generator=generator)).Q for n in MATRIX_SHAPE
    )
    exponents = torch.linspace(0, -1, inputs, dtype=torch.float64)
    matrix = left * torch.as_tensor(condition, dtype=torch.float64) ** exponents @ right.T  # [outputs, inputs]
    x = torch.randn(1000, inputs, dtype=torch.float64, generator=generator)
    return x, x @ matrix.T


def factorization() -> Problem:
    """Minimise ``E ||W2 W1 x - A x||^2 / 2`` over both factors at condition number 1e5, all 1,000 inputs in every step."""
    outputs, inputs = MATRIX_SHAPE
    data = matrix_data(1e5)

    def build() -> nn.Module:
        shapes = ((inputs, inputs), (inputs, outputs))
        return nn.Sequential(*(nn.Linear(*shape, bias=False, dtype=torch.float64) for shape in shapes)).apply(_glorot)

    return Problem(
        train=data,
        test=data,
        build=build,
        loss=lambda y, target: 0.5 * (y - target).square().sum(-1).mean(),
        figure=lambda y, target: (y - target).norm() / target.norm(),
        metric="relative_error",
        higher_is_better=False,
        batch_size=len(data[0]),
    )


def _glorot(module: nn.Module) -> None:
    """Draw a linear layer's weight Glorot-normal and set its bias to zero: the author's public setting of arXiv:2502.01131."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
