"""The arguments of a refresh, layer by layer: tensors to read, tensors to write, and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AveragedGradient:
    """An averaged gradient that is formed where it is read: ``share (momentum m + (1 - momentum) g) + take g``.

    Attributes:
        gradient: ``g`` of this step, in the shape of the parameter; float32, bfloat16 or float16.
        average: ``m`` as the step before left it, float32, in the same shape.
        share: ``[]``, float32 or float64, on their device.
        momentum: decay of the average, in [0, 1).
        take: share of this step's gradient, as a look-ahead adds it.
    """

    gradient: Tensor
    average: Tensor
    share: Tensor
    momentum: float
    take: float

    def tensor(self) -> Tensor:
        """The averaged gradient as a tensor of the dtype of ``average``."""
        return averaged_tensors([self])[0]


def averaged_tensors(gradients: Sequence[AveragedGradient]) -> list[Tensor]:
    """:meth:`AveragedGradient.tensor` of all, those of one setting together: a launch for each, and a few for all."""
    alike: dict[tuple[float, float, torch.dtype], list[int]] = {}
    for i, gradient in enumerate(gradients):
        alike.setdefault((gradient.momentum, gradient.take, gradient.average.dtype), []).append(i)
    found: dict[int, Tensor] = {}
    for (momentum, take, dtype), places in alike.items():
        members = [gradients[i] for i in places]
        wide = [member.gradient.to(dtype) for member in members]
        fresh = torch._foreach_lerp([member.average for member in members], wide, 1 - momentum)
        for value, member in zip(fresh, members, strict=True):
            value.mul_(member.share)
        torch._foreach_add_(fresh, wide, alpha=take)
        found.update(zip(places, fresh, strict=True))
    return [found[i] for i in range(len(gradients))]


@dataclass(frozen=True)
class OutputMetric:
    """The neurons' side of one layer.

    Attributes:
        weight: averaged gradient of the weight, of ``groups * rows * inputs`` entries in this order.
        bias: that of the bias, ``groups * rows`` entries; None where no bias takes part.
        average: ``[groups, blocks, side, side]``, the moment's average, which is updated; None without one.
        root: ``[groups, blocks, side, side]``, to be written.
        input_size: ``[]``, float64, gets the root of the mean diagonal of the inputs' metric over all groups, which is that of
            the covariance with a bias; None for no need.
    """

    weight: Tensor | AveragedGradient
    bias: Tensor | AveragedGradient | None
    average: Tensor | None
    root: Tensor
    input_size: Tensor | None = None


@dataclass(frozen=True)
class InputMetric:
    """The inputs' side of one layer, or of several that share it, and the outputs' where the trust region needs it. All tensors
    are float32.

    Attributes:
        gathered: this step's ``[X 1]'[X 1]``, ``[groups, blocks, side + 1, side + 1]``, its last entries the number of samples;
            groups may share memory.
        squarable: ``[]``, bool, whether squares of the inputs are in range; None for yes.
        average: shaped as ``gathered``, the average of ``[X 1]'[X 1] / N``, which is updated; None without one.
        steps: ``[]``, what the average counts, which grows by one; None without one.
        inverse: ``[groups, blocks, side, side]``, ``C^-1``, to be written.
        mean: ``[groups, blocks * side]``, to be written; None where no bias takes part in the metric.
        decay: of the averages of both sides, in [0, 1); 0 without them.
        ridge: added to the diagonal of the covariance.
        relative: whether it is a multiple of the metric's mean diagonal.
        sample_ridge: what a relative ridge grows by, times inputs of a block per sample that the average counts.
        data_inputs: what it grows by, divided by the samples of this step; both together add at most
            :data:`MOST_SAMPLE_RIDGE`.
        sample_every: of how many samples ``gathered`` has one.
        output_ridge: added to the diagonal of each block of neurons' moment, relative to its mean.
        outputs: the neurons' side of each layer; empty where there is none.
    """

    gathered: Tensor
    squarable: Tensor | None
    average: Tensor | None
    steps: Tensor | None
    inverse: Tensor
    mean: Tensor | None
    decay: float
    ridge: float
    relative: bool
    sample_ridge: float
    data_inputs: float
    sample_every: int
    output_ridge: float
    outputs: tuple[OutputMetric, ...]


MOST_SAMPLE_RIDGE = 2.0  # the metric is nearly round then
_GRADIENTS = (torch.float32, torch.bfloat16, torch.float16)


def takes(gradient: Tensor | AveragedGradient) -> bool:
    """Whether the kernels read a gradient of its dtype."""
    if isinstance(gradient, AveragedGradient):
        return gradient.average.dtype == torch.float32 and gradient.gradient.dtype in _GRADIENTS
    return gradient.dtype in _GRADIENTS


def averages_of(layers: Sequence[InputMetric]) -> list[Tensor]:
    """Where averages go: those that are kept, and memory for this step's of the other layers."""
    sizes = [0 if layer.average is not None else layer.gathered.numel() for layer in layers]
    fresh = torch.empty(sum(sizes), dtype=torch.float32, device=layers[0].gathered.device).split(sizes)
    return [own if layer.average is None else layer.average for layer, own in zip(layers, fresh, strict=True)]


def shape_of(layer: InputMetric, outputs: OutputMetric) -> tuple[int, int, int, int, int]:
    """Groups, rows and inputs of the weight, and the sides of its blocks of neurons and of inputs."""
    groups, blocks, side, _ = outputs.root.shape
    input_blocks, input_side = layer.inverse.shape[1:3]
    return groups, blocks * side, input_blocks * input_side, side, input_side
