"""What the inputs of a layer are like: their rank, their condition, and how many of them are dead.

All three are read off the averaged second moment ``E[x x']``, in the diagonal blocks in which the optimizer keeps it. With a
bias, which makes up for a constant, rank and condition are those of the covariance ``E[x x'] - E[x] E[x]'``.

An eigenvalue counts if it is above what rounding may leave of a zero. That is ``size * eps`` times the largest eigenvalue of
``E[x x']``, as in ``torch.linalg.matrix_rank``, for which ``|E[x]|^2`` plus the largest of the covariance is a bound. So in
float32 and blocks of 144 a direction counts in which inputs move by at least about 0.4 % of what they do in the strongest one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lnb.statistics.tracked import Tracked

LARGEST = 1024
"""Inputs of a block beyond which its eigenvalues are not computed: they take the cube of it in operations."""


class InputFigures(NamedTuple):
    """The figures of one layer's inputs.

    Attributes:
        rank: directions in which the inputs vary, summed over groups and blocks: the rank of the whole matrix is at most that.
            NaN where a block is larger than :data:`LARGEST`.
        condition: the largest over the smallest eigenvalue that counts for the rank, over all blocks of a group, and of the
            worst group. NaN where there is none.
        dead: inputs of which the mean square is at most ``eps`` times the layer's mean: those that are always zero, as behind a
            ReLU that never opens. One that died in the course of the training falls below that as the average forgets it.
    """

    rank: float
    condition: float
    dead: int


def input_figures(second_moment: Tensor, with_bias: bool) -> InputFigures:
    """The figures of a layer. Waits for the device; the eigenvalues are computed on the CPU, in float64.

    Args:
        second_moment: the average of ``E[x~ x~']``, ``x~ = [x 1]``, as the state has it: ``[groups, blocks, size+1, size+1]``.
        with_bias: whether the layer has a bias.
    """
    raw = second_moment.detach().to("cpu", torch.float64)
    corrected = raw / raw[..., -1:, -1:]  # 1 - b^t: the average starts from zero
    square, mean = corrected[..., :-1, :-1], corrected[..., -1, :-1]
    if not bool(torch.isfinite(corrected).all()):
        return InputFigures(math.nan, math.nan, 0)
    eps = torch.finfo(second_moment.dtype).eps
    squares = square.diagonal(dim1=-2, dim2=-1)
    dead = int((squares <= eps * squares.mean()).sum())
    size = square.shape[-1]
    if size > LARGEST:
        return InputFigures(math.nan, math.nan, dead)
    centred = square - mean.unsqueeze(-1) * mean.unsqueeze(-2) if with_bias else square
    values = torch.linalg.eigvalsh(centred)  # [groups, blocks, size], ascending
    offset = mean.square().sum(-1) if with_bias else torch.zeros(())
    counts = values > (size * eps * (values[..., -1] + offset)).unsqueeze(-1)
    least = torch.where(counts, values, math.inf).amin((1, 2))
    most = torch.where(counts, values, 0.0).amax((1, 2))
    ratios = (most / least)[most > 0]
    return InputFigures(int(counts.sum()), float(ratios.max()) if len(ratios) else math.nan, dead)


def figures_of_inputs(tracked: Tracked) -> dict[str, float]:
    """The figures of a layer by ``layer/<name>/<figure>``, for :meth:`lnb.LNB.diagnostics`; none before its first refresh.

    Where ranks share out a layer's groups or inputs, the figures describe those that are here.
    """
    moment = tracked.state.get("second_moment")
    if moment is None or moment.numel() == 0 or float(moment[0, 0, -1, -1]) == 0:  # a shard may have no group
        return {}
    figures = input_figures(moment, tracked.layer.bias is not None)
    place = f"layer/{tracked.layer.name}"
    return {
        f"{place}/inputs": math.prod(moment.shape[:2]) * (moment.shape[-1] - 1),
        f"{place}/input_rank": figures.rank,
        f"{place}/input_condition": figures.condition,
        f"{place}/dead_inputs": figures.dead,
    }
