"""Running averages of a layer's input features: their means, mean squares and second moments.

Every average is kept raw, ``a <- b a + (1 - b) value`` from zero, and divided by ``1 - b^t`` where it is read
(``t`` is the number of values so far), so that the first value counts in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lnb.config import Config
from lnb.layers.claimed import Layer
from lnb.sharded.columns import Columns, add_parts
from lnb.statistics.arenas import constant, owners_of, sums_of
from lnb_kernels.refresh.layers import MOST_SAMPLE_RIDGE
from lnb_kernels.scaling import sum_dtype

# In units of the precision: what rounding leaves of the variance of a feature that does not vary, relative to its mean square.
NOISE = 16


@dataclass(frozen=True)
class FeatureSums:
    """Sums over the samples of one step: per feature ``[groups, d_in]``, and the number of samples."""

    total: Tensor
    square: Tensor
    count: Tensor  # []


def sums_from_moments(layer: Layer, moments: Tensor, channels: Tensor | None) -> FeatureSums:
    """The sums of one step from what the probes gathered.

    Args:
        layer: the layer.
        moments: ``[X 1]'[X 1]``, ``[groups, blocks, size+1, size+1]``.
        channels: convolution: ``[3, C]`` sums, squares and counts over the unpadded input.
    """
    if channels is not None:
        return FeatureSums(layer.per_column(channels[0]), layer.per_column(channels[1]), channels[2, 0])
    squares = moments.diagonal(dim1=-2, dim2=-1)[..., :-1].flatten(1)
    return FeatureSums(mean_of(moments), squares, moments[0, 0, -1, -1])


def mean_of(moments: Tensor) -> Tensor:
    """The last rows of the blocks ``[groups, blocks, size+1, size+1]``, without their last entries: ``[groups, d_in]``."""
    return moments[..., -1, :-1].flatten(1)


def sums_from_inputs(layer: Layer, inputs: list[Tensor], dtype: torch.dtype) -> FeatureSums:
    """The same sums, from the inputs themselves (``[.., d_in]``, or images ``[.., C, H, W]``)."""
    total: Tensor | None = None
    square: Tensor | None = None
    count = 0
    for x in inputs:
        wide = x.to(dtype)
        if layer.is_convolution:
            positions = [dim for dim in range(x.dim()) if dim != x.dim() - 3]
            count += x.numel() // x.shape[-3]
        else:
            wide = wide.reshape(-1, x.shape[-1])
            positions = [0]
            count += wide.shape[0]
        total = wide.sum(positions) if total is None else total + wide.sum(positions)
        square = wide.square().sum(positions) if square is None else square + wide.square().sum(positions)
    assert total is not None
    assert square is not None
    counted = torch.full((), float(count), dtype=dtype, device=total.device)
    return FeatureSums(layer.per_column(total), layer.per_column(square), counted)


def bias_correction(decay: float, steps: Tensor) -> Tensor:
    """``1 - decay^steps``, in float64 where the device has it (every value so far counted, its weights sum to this)."""
    wide = steps if steps.device.type == "mps" else steps.double()
    return 1 - decay**wide


def shrunk_variance(mean: Tensor, mean_square: Tensor, shrinkage: float) -> Tensor:
    """Variance per feature, moved towards the layer's mean variance: ``(1-s) var + s mean(var)``.

    It is at least the rounding error that the subtraction leaves, and so above 0: features that do not vary, as those of a
    batch of one sample, would otherwise be divided by 0.

    Args:
        mean: ``[groups, d_in]``.
        mean_square: the same shape.
        shrinkage: ``s``.
    """
    variance = (mean_square - mean.square()).clamp(min=0)
    shrunk = torch.lerp(variance, variance.mean().expand_as(variance), shrinkage)
    limits = torch.finfo(variance.dtype)
    return shrunk.maximum(NOISE * limits.eps * mean_square).clamp(min=limits.tiny)


def mean_diagonals(
    second_moment: Tensor, with_bias: bool, blocks: tuple[int, ...], columns: Sequence[Columns | None] = ()
) -> Tensor:
    """The mean diagonal of each metric, ``[entries]``, the same for all blocks of a metric.

    It is that of the covariance where there is a bias, so that an offset of the inputs does not change it, and of the second
    moment otherwise. The second moment also serves where the inputs do not vary beyond rounding, as in a batch of one sample: a
    covariance of zero says nothing of the size of the inputs to come. Inputs that are all zero count as of size 1.

    Args:
        second_moment: diagonal blocks of ``E[x~ x~']``, ``[entries, size+1, size+1]``.
        with_bias: whether the bias takes part in the metric.
        blocks: how many blocks, one after the other, each metric has.
        columns: of each metric, where only some of its blocks are here.
    """
    diagonal = second_moment.diagonal(dim1=-2, dim2=-1)[..., :-1]
    average = _mean_over_blocks(diagonal.mean(-1), blocks)
    if with_bias:
        variance = _mean_over_blocks((diagonal - second_moment[..., -1, :-1].square()).mean(-1), blocks)
    else:
        variance = torch.zeros_like(average)
    if any(one is not None for one in columns):
        average, variance = _mean_over_columns(torch.stack([average, variance]), blocks, columns)
    if with_bias:
        varies = variance > NOISE * torch.finfo(variance.dtype).eps * average
        average = torch.where(varies, variance, average)
    return torch.where(average > 0, average, 1.0)


def ridge_of(
    second_moment: Tensor,
    ridge: float | Tensor,
    relative: bool,
    with_bias: bool,
    blocks: tuple[int, ...],
    columns: Sequence[Columns | None] = (),
) -> float | Tensor:
    """The number that is added to the diagonal of the metric: ``ridge``, or ``ridge`` times :func:`mean_diagonals`.

    Args:
        second_moment, with_bias, blocks, columns: as for that.
        ridge: the setting, a number, or one per entry ``[entries]``.
        relative: whether it is a multiple.

    Returns:
        A number, or one value per entry ``[entries, 1, 1, 1]``; the same for all blocks of a metric.
    """
    if not relative:
        return ridge
    scaled: Tensor = (ridge * mean_diagonals(second_moment, with_bias, blocks, columns)).view(-1, 1, 1, 1)
    return scaled


def _mean_over_blocks(values: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """The mean of each run of ``blocks`` entries, for each of them."""
    if len(blocks) == len(values):
        return values
    counts = constant(tuple(map(float, blocks)), values.device, values.dtype)
    return (sums_of(values, blocks) / counts)[owners_of(blocks, values.device)]


def _mean_over_columns(values: Tensor, blocks: tuple[int, ...], columns: Sequence[Columns | None]) -> Tensor:
    """Means over the columns here, ``[n, entries]``, as those over all columns."""
    spans = list(values.split(blocks, dim=1))
    cut = [(i, one) for i, one in enumerate(columns) if one is not None]
    totals = add_parts([(one, spans[i][:, 0].to(sum_dtype(values.device))) for i, one in cut])
    for (i, one), total in zip(cut, totals, strict=True):
        spans[i] = (total / one.of).to(values.dtype).unsqueeze(1).expand_as(spans[i])
    return torch.cat(spans, dim=1)


def sample_ridge_of(size: int, samples: Tensor, data_inputs: Tensor, steps: Tensor | None, config: Config) -> Tensor:
    """What few samples add to relative ridges, ``[layers]``: at most :data:`MOST_SAMPLE_RIDGE`, with which a metric is nearly
    round.

    ``sample_ridge`` times the inputs of a block per sample that the average counts: the eigenvalues of ``n`` samples' second
    moment of ``d`` inputs spread around the true ones by a share of order ``d / n`` (Ledoit and Wolf, 2004). An average over
    steps with weights ``w`` counts ``(sum w)^2 / sum w^2`` times the samples of one: ``(1 - b^t) / (1 + b^t) (1 + b) / (1 - b)``
    after ``t`` steps of decay ``b``.

    And, for layers that see data, ``data_ridge`` times all inputs per sample of one step. A gradient of ``n`` samples has noise
    of one size in each of ``d`` whitened directions, and a step of a given length spends itself on it. What networks make of
    data has been shaped by learning; raw data, such as images, vary most in few directions, and hardly, or by noise alone, in
    most of the others. The more of them there are for a sample, the less they are amplified.

    Args:
        size: inputs of a block.
        samples: that this step read of each layer, ``[layers]``.
        data_inputs: ``data_ridge`` times each layer's inputs, 0 where it sees no data, ``[layers]``.
        steps: that the average counts, ``[layers]``; None without an average.
        config: the layers' settings.
    """
    of_step = (samples / config.sample_every).clamp(min=1)
    counted = of_step
    if steps is not None:
        b = config.b_s
        past = b ** steps.clamp(min=1)
        counted = of_step * ((1 - past) / (1 + past) * ((1 + b) / (1 - b)))
    return (config.sample_ridge * size / counted + data_inputs / of_step).clamp(max=MOST_SAMPLE_RIDGE)
