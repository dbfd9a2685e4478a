"""Layers of which each rank has some columns: those of ``RowwiseParallel``, whose inputs are divided among the ranks of a
group.

With the inputs ``x = [x_1 .. x_n]`` of ``n`` ranks, blocks of the metric end where shares do, so every rank factors its own:
``C_r``, with the mean ``mu_r``. It has the part ``w_r`` of a row ``(w, b)`` of a gradient, ``w = [w_1 .. w_n]``, and the
bias, which all have. What belongs to whole rows is a sum over the ranks:

- ``||g_i||^2 = sum_r ||g_i,r||^2 + b^2``, by which agreement is judged;
- ``h_b = b - sum_r <h_r, mu_r>`` with ``h_r = C_r^-1 (w_r - b mu_r)``;
- the scale's ``<h, g~> = sum_r <h_r, w_r - b mu_r> + b^2``;
- and of a block of outputs ``M M' = sum_r [h_r w_r' - (h_r mu_r) b'] + b b'``, where ``r`` numbers the ranks.

A step exchanges four numbers per row, and on refreshes the blocks of outputs. No weight, gradient or direction is sent. Every
rank adds the share ``b^2 / n`` or ``b b' / n``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lnb.distributed.failures import naming
from lnb.statistics.factored import Factor
from lnb_kernels.scaling import sum_dtype, unit_scale
from lnb_kernels.two_sided.reference import agreement_of, mix, row_scale, row_squares, times_blocks

UNFINISHED = "No parameter was changed; averages may have this step's gradients in them already"
"""The state in which a step leaves things if it breaks off while directions are made."""


@dataclass(frozen=True)
class Columns:
    """The share of a layer's inputs that is on this rank.

    Attributes:
        group: the ranks that have the shares.
        index: the number of the share here.
        of: how many shares there are, of equal size.
    """

    group: Any
    index: int
    of: int


def add_parts(parts: Sequence[tuple[Columns, Tensor]]) -> list[Tensor]:
    """Each of the tensors added over the ranks that have the other shares, by one reduction for layers of one group."""
    totals: list[Tensor] = [tensor for _, tensor in parts]
    for group in dict.fromkeys(columns.group for columns, _ in parts):
        members = [i for i, (columns, _) in enumerate(parts) if columns.group is group]
        buffer = torch.cat([parts[i][1].flatten() for i in members])
        with naming("sums over the columns of layers", group.size(), UNFINISHED):
            dist.all_reduce(buffer, group=group)
        for i, total in zip(members, buffer.split([parts[i][1].numel() for i in members]), strict=True):
            totals[i] = total.view(parts[i][1].shape)
    return totals


def partial_output_moment(weight: Tensor, bias: Tensor | None, factor: Factor, blocks: int, columns: Columns) -> Tensor:
    """What the columns on this rank add to the blocks of ``M M'``, ``[groups, blocks, size, size]``, in the dtype of sums.

    Args:
        weight: gradient ``[groups, rows, columns]``.
        bias: gradient ``[groups, rows, 1]``, or None.
        factor: of the columns here.
        blocks: of outputs.
        columns: of the layer.
    """
    wide = sum_dtype(weight.device)
    scale = unit_scale(weight, bias)
    weight = weight * scale
    solved, _ = factor.solve(weight, None if bias is None else bias * scale)
    solved_scale = unit_scale(solved, None)
    solved = solved * solved_scale
    size = weight.shape[-2] // blocks
    moment = _cut(solved, blocks, size) @ _cut(weight, blocks, size).mT
    if bias is not None and factor.mean is not None:
        product = solved @ factor.mean.unsqueeze(-1)
        moment = moment - _cut(product, blocks, size) @ _cut(bias * scale, blocks, size).mT
    total = moment.to(wide) / (scale.to(wide).square() * solved_scale.to(wide)).unsqueeze(-1)
    if bias is not None:
        of_bias = _cut(bias.to(wide), blocks, size)
        total = total + of_bias @ of_bias.mT / columns.of
    return total


@dataclass
class LayerColumns:
    """The columns of a layer that are on this rank, for :func:`column_directions_`.

    Attributes:
        weight: ``g~``, ``[groups, rows, columns]``; its direction takes its place.
        bias: ``[groups, rows, 1]`` or None; likewise.
        factor: of the metric of the columns.
        root: ``P^(-1/2)``, ``[groups, blocks, size, size]``.
        squares: the mean square of each row's gradients, ``[groups, rows]``; None to leave agreement out.
        bias_weight: what the bias counts in that, ``[1]``; None for 1.
        columns: of the layer.
    """

    weight: Tensor
    bias: Tensor | None
    factor: Factor
    root: Tensor
    squares: Tensor | None
    bias_weight: Tensor | None
    columns: Columns


def column_directions_(layers: list[LayerColumns]) -> Tensor:
    """:func:`lnb_kernels.two_sided_directions_` for columns: the sums over the columns here, ``[layers, 4]``.

    Sums of all ranks' results are those of whole layers.
    """
    begun = [_Begun(layer) for layer in layers]
    totals = add_parts([(one.layer.columns, one.rows) for one in begun])
    return torch.stack([one.finish_(total) for one, total in zip(begun, totals, strict=True)])


class _Begun:
    """A layer's columns, before what belongs to whole rows is known. Directions do not depend on the size of ``P``."""

    def __init__(self, layer: LayerColumns) -> None:
        self.layer = layer
        weight, bias, factor = layer.weight, layer.bias, layer.factor
        wide = self.wide = sum_dtype(weight.device)
        scale = unit_scale(weight, bias)
        root = layer.root * unit_scale(layer.root, matrix_dims=3)
        mixed = mix(root * scale.unsqueeze(-3), weight)
        self.size = scale.to(wide).reciprocal()  # the factor by which the parts here are too small
        self.mixed_bias = None if bias is None or factor.mean is None else mix(root, bias)
        if self.mixed_bias is not None and factor.mean is not None:
            mixed = mixed - (self.mixed_bias * scale) * factor.mean.unsqueeze(-2)
        self.step = times_blocks(mixed, factor.matrix)
        product = (self.step.to(wide) * mixed.to(wide)).sum(-1) * self.size.squeeze(-1).square()
        counted = self.size.new_ones(()) if layer.bias_weight is None else layer.bias_weight.to(wide)
        self.square = row_squares(weight, bias, counted / layer.columns.of).squeeze(-1)
        along = torch.zeros_like(product)
        if self.mixed_bias is not None and factor.mean is not None:
            product = product + self.mixed_bias.to(wide).squeeze(-1).square() / layer.columns.of
            along = (self.step @ factor.mean.unsqueeze(-1)).to(wide).squeeze(-1) * self.size.squeeze(-1)
        self.rows = torch.stack([product, along, self.square])  # [3, groups, rows]

    def finish_(self, total: Tensor) -> Tensor:
        """Write the direction; return the four sums over the columns here."""
        layer, wide = self.layer, self.wide
        weight, bias, of = layer.weight, layer.bias, layer.columns.of
        product, along, square = (rows.unsqueeze(-1) for rows in total)
        scale = row_scale(product)
        step = self.step.to(wide) * self.size
        free = (step * scale).square().sum()
        if layer.squares is not None:
            scale = scale * agreement_of(square, layer.squares.unsqueeze(-1))
        step = (step * scale).to(weight.dtype)
        products = (step.to(wide) * weight.to(wide)).sum()
        if bias is not None and self.mixed_bias is not None:
            step_bias = ((self.mixed_bias.to(wide) - along) * scale).to(bias.dtype)
            products = products + (step_bias.to(wide) * bias.to(wide)).sum() / of
            bias.copy_(step_bias)
        weight.copy_(step)
        return torch.stack([products, step.to(wide).square().sum(), free, self.square.sum()])


def _cut(rows: Tensor, blocks: int, size: int) -> Tensor:
    cut: Tensor = rows.unflatten(-2, (blocks, size))
    return cut
