"""Examples in memory, indexed by minibatch: what a :class:`lnb_bench.training.Task` trains and tests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Split(Protocol):
    """A fixed, ordered set of examples."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples ``indices`` (``[n]`` int64, on the CPU), on ``device``."""
        ...


@dataclass(frozen=True)
class ImageSplit:
    """Images ``[N, C, H, W]`` uint8 with labels ``[N]`` or ``[N, H, W]`` uint8; batches are float32 and int64.

    A batch is ``(x - mean) / std`` per channel, where ``x`` is ``pixel / white``, or ``1 - pixel / white`` if
    ``invert``: the constants stay those of the images that are not inverted, so that the network sees the inversion.
    ``affine`` is then a scale and a shift of every input value, both ``[C, H, W]``: ``scale * x + shift``.
    """

    images: Tensor
    labels: Tensor
    white: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    invert: bool = False
    affine: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def change(self) -> tuple[Tensor, Tensor]:
        """What ``invert`` and ``affine`` do to an input ``x``: ``scale * x + shift``; both ``[C, H, W]``."""
        scale = torch.ones(self.images.shape[1:])
        shift = torch.zeros_like(scale)
        if self.invert:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
            scale, shift = -scale, shift + (1 - 2 * mean) / std
        if self.affine is not None:
            scale, shift = self.affine[0] * scale, self.affine[0] * shift + self.affine[1]
        return scale, shift

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs ``[n, C, H, W]`` float32 and labels ``[n, ...]`` int64."""
        pixels = self.images[indices].to(device).float() / self.white
        if self.invert:
            pixels = 1.0 - pixels
        mean = torch.tensor(self.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=device).view(-1, 1, 1)
        inputs = (pixels - mean) / std
        if self.affine is not None:
            scale, shift = (part.to(device) for part in self.affine)
            inputs = inputs * scale + shift
        return inputs, self.labels[indices].to(device).long()


def random_affine(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """A scale, log-uniform in [0.1, 10], and a shift, uniform in [-1, 1], for every input value; both of ``shape``.

    What can be computed from the inputs stays the same, how well conditioned they are does not.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (2 * torch.rand(shape, generator=generator) - 1)
    shift = 2 * torch.rand(shape, generator=generator) - 1
    return scale, shift


@dataclass(frozen=True)
class TextSplit:
    """A text as tokens ``[T]`` uint8, cut into windows of ``context`` tokens; the target is the next token."""

    tokens: Tensor
    context: int

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens and next tokens, both ``[n, context]`` int64."""
        places = indices[:, None] * self.context + torch.arange(self.context + 1)
        windows = self.tokens[places].to(device).long()
        return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True)
class FirstExamples:
    """The first ``count`` examples of a split, for quick evaluations."""

    split: Split
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.split))

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The examples ``indices``."""
        return self.split.batch(indices, device)


@dataclass(frozen=True)
class VectorSplit:
    """Input rows ``[N, d_in]`` and target rows ``[N, d_out]`` of one floating dtype."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows ``indices`` of inputs and targets."""
        return self.inputs[indices].to(device), self.targets[indices].to(device)
