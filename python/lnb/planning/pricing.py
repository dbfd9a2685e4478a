"""The price of a layer's parts: its sizes, and the times of products and passes over its numbers at the device's rates."""

from __future__ import annotations

import torch

from lnb.config import Config
from lnb.context import moment_blocks
from lnb.layers.capture import Samples, statistics_dtype
from lnb.layers.claimed import Layer
from lnb.planning.rates import Rates


class Pricing:
    """What solvers and :func:`lnb.planning.cost.layer_cost` add up.

    Attributes:
        layer: the layer.
        config: its settings.
        rates: of its device.
        samples: of one step.
        groups, outputs, inputs: of the layer: matrices, rows of each, and their inputs without the bias.
        columns: inputs, and one for the bias.
        numbers: in the matrices of the gradient.
        wide: dtype of statistics and directions.
        blocks: diagonal blocks of the metric of each group.
    """

    def __init__(self, layer: Layer, config: Config, samples: Samples, rates: Rates) -> None:
        self.layer, self.config, self.rates = layer, config, rates
        self.samples = samples.count
        self.groups, self.outputs, self.inputs = layer.shape
        self.columns, self.numbers = layer.matrix_columns, layer.numbers
        self.wide = statistics_dtype(layer.weight.dtype)
        self.blocks = moment_blocks(layer, config)

    def passes_over(self, numbers: float, count: int) -> float:
        """Time of ``count`` passes that read or write this many numbers."""
        return self.rates.traffic(count * self.wide.itemsize * numbers)

    def layer_product(self, dtype: torch.dtype, flops: float) -> float:
        """Time of this many operations of the layer's own product."""
        kind = self.layer.layer_kind
        size = kind.product_size(self.samples, self.inputs, self.outputs, self.groups)
        return self.rates.seconds(kind.product, dtype, size, flops)

    def block_product(self, size: int) -> float:
        """All numbers times a block-diagonal matrix of blocks of ``size``."""
        flops = 2.0 * self.numbers * size
        if size < self.inputs:
            return self.rates.seconds("batched", self.wide, size, flops)
        return self.rates.seconds("matmul", self.wide, (self.outputs * size**2) ** (1 / 3), flops)

    def averages(self) -> float:
        """The averages that solvers without a factor keep, at a refresh."""
        passes = 4 + (6 if self.config.keeps_second_moment else 0)
        return self.passes_over(self.groups * (self.inputs + 1) ** 2, passes)
