"""The arguments of the two ops for one layer and for all, and where a layer's numbers lie among those of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lnb_kernels._checks import PLAIN
from lnb_kernels.step_tables import StepSettings

LARGEST_BLOCK = 144
"""Side of a block up to which the CUDA kernel keeps a tile in a multiprocessor's shared memory."""

LARGEST_TRITON = 576
"""Side of a block that Triton's kernel takes: its tiles are in caches."""

SUMS = 6
"""Partial sums of a row in a tile: ``<H, M>``, ``||H||^2``, ``H mu``, ``<H, g~>``, ``||g~||^2``, ``||g||^2``."""


@dataclass(frozen=True)
class DirectLayer:
    """A layer whose direction is wanted. Tensors as :func:`lnb_kernels.fused_step.direct_layers_` takes them."""

    direction: Tensor
    momentum: Tensor
    gradient: Tensor
    bias_gradient: Tensor | None
    bias_momentum: Tensor | None
    inverse: Tensor
    mean: Tensor | None
    root: Tensor

    @property
    def rows(self) -> int:
        """Rows of all the layer's matrices."""
        return self.gradient.shape[:-1].numel()

    @property
    def column_blocks(self) -> int:
        """Diagonal blocks of the inverse, of one matrix."""
        return self.inverse.shape[-3]


@dataclass(frozen=True)
class FinishLayer:
    """A layer whose direction is made. Tensors and numbers as :func:`lnb_kernels.fused_step.finish_layers_` takes them."""

    rows: int
    column_blocks: int
    bias_momentum: Tensor | None
    bias_direction: Tensor | None
    bias_gradient: Tensor | None
    step: int
    usual_norm: float
    rate: float | Tensor


@dataclass(frozen=True)
class DirectArguments:
    """What :func:`lnb_kernels.fused_step.direct_layers_` is given for all layers, by the names that it uses."""

    partials: Tensor
    mixed_biases: Tensor
    shares: Tensor
    bias_shares: Tensor | None
    decay: float
    take: float
    ok: Tensor | None
    precision: str

    def resolved(self) -> DirectArguments:
        """The same with shares as kernels read them."""
        return replace(self, shares=self.shares.resolve_neg(), bias_shares=_resolved(self.bias_shares))

    def of_layer(self, layer: DirectLayer, place: Place) -> DirectArguments:
        """The part of one layer."""
        return replace(
            self,
            partials=place.partials(self.partials, layer),
            mixed_biases=self.mixed_biases[place.rows(layer)],
            shares=self.shares[place.slot],
            bias_shares=None if self.bias_shares is None else self.bias_shares[place.slot],
        )


@dataclass(frozen=True)
class Numbers:
    """What :func:`lnb_kernels.fused_step.finish_layers_` writes for all layers, by the names that it uses."""

    row_scales: Tensor
    row_square: Tensor
    independent: Tensor
    growth: Tensor
    radius: Tensor
    coherence: Tensor
    sums: Tensor
    scales: Tensor
    products: Tensor
    weight_norm: Tensor
    shorter: Tensor


@dataclass(frozen=True)
class FinishArguments:
    """What :func:`lnb_kernels.fused_step.finish_layers_` is given for all layers, by the names that it uses."""

    numbers: Numbers
    partials: Tensor
    mixed_biases: Tensor
    input_size: Tensor
    steps: Tensor
    norms: Tensor | None
    bias_shares: Tensor | None
    settings: StepSettings
    ok: Tensor | None

    def resolved(self) -> FinishArguments:
        """The same with norms and shares, if there are any, as kernels read them."""
        return replace(self, norms=_resolved(self.norms), bias_shares=_resolved(self.bias_shares))

    def are_served(self, layers: Sequence[FinishLayer]) -> bool:
        """Whether the kernels take these, with the biases of ``layers``."""
        tensors = (*vars(self.numbers).values(), self.partials, self.mixed_biases, self.input_size, self.steps)
        return all(map(is_finished, layers)) and not any(map(Tensor.is_neg, tensors))


class Place(NamedTuple):
    """Where a layer begins: its first row among those of all layers, its first entry of ``partials``, and its number."""

    row: int
    entry: int
    slot: int

    def rows(self, layer: DirectLayer | FinishLayer) -> slice:
        """The layer's rows among those of all layers."""
        return slice(self.row, self.row + layer.rows)

    def partials(self, partials: Tensor, layer: DirectLayer | FinishLayer) -> Tensor:
        """The layer's part of ``partials``."""
        return partials[self.entry : self.entry + SUMS * layer.rows * layer.column_blocks]


def _resolved(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.resolve_neg()


def partial_count(rows: Sequence[int], column_blocks: Sequence[int]) -> int:
    """Entries of ``partials``: the sums of every row, of all its matrices, in every block of columns."""
    return SUMS * sum(n * blocks for n, blocks in zip(rows, column_blocks, strict=True))


def places_of(layers: Sequence[DirectLayer | FinishLayer]) -> list[Place]:
    """Where each layer begins."""
    found, row, entry = [], 0, 0
    for slot, layer in enumerate(layers):
        found.append(Place(row, entry, slot))
        row += layer.rows
        entry += SUMS * layer.rows * layer.column_blocks
    return found


def serves(
    directions: Sequence[Tensor],
    momentum: Sequence[Tensor],
    gradients: Sequence[Tensor],
    bias_gradients: Sequence[Tensor | None],
    bias_momentum: Sequence[Tensor | None],
    inverses: Sequence[Tensor],
    means: Sequence[Tensor | None],
    roots: Sequence[Tensor],
) -> bool:
    """Whether the kernels of :func:`lnb_kernels.fused_step.direct_layers_` take all of these layers.

    They take plain, contiguous tensors of the dtypes named there, float64 excepted, and blocks of sides up to
    :data:`LARGEST_BLOCK`. The op takes the others by its reference. Nothing is asked of the device.
    """
    columns = (directions, momentum, gradients, bias_gradients, bias_momentum, inverses, means, roots)
    return all(is_served(DirectLayer(*entries)) for entries in zip(*columns, strict=True))


def is_served(layer: DirectLayer, largest: int = LARGEST_BLOCK) -> bool:
    """:func:`serves` of one layer, with blocks of sides up to ``largest``."""
    tensors = [tensor for tensor in vars(layer).values() if tensor is not None]
    return (
        max(layer.inverse.shape[-1], layer.root.shape[-1]) <= largest
        and set(map(type, tensors)) <= PLAIN
        and all(map(Tensor.is_contiguous, tensors))
        and True not in map(Tensor.is_neg, tensors)
        and torch.float64 not in {tensor.dtype for tensor in tensors}
    )


def is_finished(layer: FinishLayer) -> bool:
    """Whether the kernels of :func:`lnb_kernels.fused_step.finish_layers_` take the layer's bias."""
    tensors = [t for t in (layer.bias_momentum, layer.bias_direction, layer.bias_gradient) if t is not None]
    return (
        all(map(Tensor.is_contiguous, tensors))
        and True not in map(Tensor.is_neg, tensors)
        and torch.float64 not in {tensor.dtype for tensor in tensors}
    )
