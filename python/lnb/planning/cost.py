"""What one layer costs per step: its arithmetic over the device's rates.

Times are the sum of arithmetic, memory traffic and calls: on a CPU little of these overlaps, and on an accelerator the
largest of them decides, which the sum exceeds by less than a factor of three.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lnb.blocks import Block
from lnb.config import Config
from lnb.factored import block_count
from lnb.layers.capture import Rows, statistics_dtype
from lnb.orthogonalize import INVERSE_ROOT_FLOPS, STEPS, orthogonalize_flops, products_dtype
from lnb.planning.rates import Rates
from lnb.rounded_metric import rounds_products
from lnb.work import gathered_moments, moment_blocks
from lnb_kernels._triton.crossover import fused_matvec_pays

# Calls of small operations, counted on the CPU: of a solution, and of what every layer needs besides.
_CALLS_UPDATE = 12
_CALLS_FACTOR = 8
_CALLS_REFRESH = 45
_CALLS_ARROW = 60
_CALLS_CG = 115
_CALLS_CG_ITERATION = 14
_CALLS_DUAL = 40
_CALLS_OUTPUT_REFRESH = 100
_CALLS_ORTHOGONALIZE = 62


@dataclass(frozen=True)
class Cost:
    """Predicted seconds of one layer.

    Attributes:
        gather: extra time of a backward pass that gathers statistics.
        refresh: of averaging them and making a factor, on the same steps.
        solve: of the solution, every step.
        region: of the trust region, every step.
        update: of averaging gradients and applying directions, every step.
        passes: of the layer's forward and backward passes, with one elementwise function after it.
        refresh_every: steps from one gathering to the next.
    """

    gather: float
    refresh: float
    solve: float
    region: float
    update: float
    passes: float
    refresh_every: int

    @property
    def statistics(self) -> float:
        """Gathering and refreshing, per step on average."""
        return (self.gather + self.refresh) / self.refresh_every

    @property
    def overhead(self) -> float:
        """What the metric adds to a step on average: statistics, solution and trust region."""
        return self.statistics + self.solve + self.region


def layer_cost(block: Block, config: Config, rows: Rows, rates: Rates) -> Cost:
    """The cost of a layer whose step sees so many rows.

    Args:
        block: the layer.
        config: its own settings, with a solver other than ``"auto"``.
        rows: of one step.
        rates: of its device.
    """
    return _LayerCost(block, config, rows, rates).total()


class _LayerCost:
    """The terms of :func:`layer_cost`, which share the layer's sizes."""

    def __init__(self, block: Block, config: Config, rows: Rows, rates: Rates) -> None:
        self.block, self.config, self.rates = block, config, rates
        self.rows, self.input_grad = rows.count, rows.input_grad
        self.groups, self.outputs, self.inputs = block.shape
        self.columns = self.inputs + (block.bias is not None)
        self.numbers = self.groups * self.outputs * self.columns
        self.dtype = block.weight.dtype
        self.wide = statistics_dtype(self.dtype)
        self.item = self.wide.itemsize
        self.blocks = moment_blocks(block, config)

    def total(self) -> Cost:
        refreshed = 0.0
        if self.config.factored:
            refreshed, solve = self._factor()
        elif self.config.solver == "arrow":
            refreshed, solve = self._moments(), self._passes_over(self.numbers, 6) + self.rates.calls(_CALLS_ARROW)
        elif self.config.solver == "dual":
            solve = self._dual()
        elif self.config.solver == "matrix_free":
            products = (self.config.cg_iterations + 1) * self._matrix_free_product()
            solve = self._iterations() + products + self._passes_over(self.rows * self.groups * self.inputs, 2)
        else:
            size = (self.outputs * self.columns**2) ** (1 / 3)
            flops = (self.config.cg_iterations + 1) * 2 * self.numbers * self.columns
            refreshed = self._moments()
            dtype = torch.bfloat16 if rounds_products(self.block, self.config) else self.wide
            solve = self._iterations() + self.rates.seconds("matmul", dtype, size, flops)
        return Cost(
            gather=0.0 if self.config.keeps_inputs else self._gather(),
            refresh=refreshed,
            solve=solve,
            region=self._region(),
            update=self._passes_over(self.numbers, 12) + self.rates.calls(_CALLS_UPDATE),
            passes=self._forward_and_backward(),
            refresh_every=self.config.refresh_every,
        )

    def _passes_over(self, numbers: float, count: int) -> float:
        """Time to read or write so many numbers so often."""
        return self.rates.traffic(count * self.item * numbers)

    def _forward_and_backward(self) -> float:
        products = 3 if self.input_grad else 2
        flops = products * 2.0 * self.rows * self.groups * self.inputs * self.outputs
        outputs = self.rows * self.groups * self.outputs
        inputs = self.rows * self.groups * self.inputs / self.block.taps
        time = self._layer_product(self.dtype, flops)
        traffic = self.dtype.itemsize * (8 * outputs + 3 * inputs)
        return time + self.rates.traffic(traffic) + self.rates.calls(16)

    def _layer_product(self, dtype: torch.dtype, flops: float) -> float:
        """Time of so many operations of the layer's own product."""
        kind = self.block.layer_kind
        size = kind.product_size(self.rows, self.inputs, self.outputs, self.groups)
        return self.rates.seconds(kind.product, dtype, size, flops)

    def _gather(self) -> float:
        """The second moment of the rows that are read, and the pass over them."""
        rows = self.rows / self.config.sample_every
        dtype = self.config.moment_dtype or self.dtype
        matrices = gathered_moments(self.block, self.config)
        d, taps = self.inputs // self.blocks, self.block.taps
        if self.block.by_shifts:
            flops = self.block.moment_flops(d) * rows * matrices
            return self.rates.seconds("conv_gram", dtype, max(1, d // taps), flops) + self.rates.calls(30)
        time = self.rates.seconds("gram", dtype, d, matrices * rows * d**2)
        if taps > 1:  # patches are made
            return time + self._passes_over(rows * d * matrices, 3) + self.rates.calls(30)
        return time + self._passes_over(matrices * (d + 1) ** 2, 2) + self.rates.calls(10)

    def _moments(self) -> float:
        """The averages kept between refreshes without a factor."""
        passes = 4 + (6 if self.config.keeps_second_moment else 0)
        return self._passes_over(self.groups * (self.inputs + 1) ** 2, passes)

    def _factor(self) -> tuple[float, float]:
        """Of a refresh, and of the solution with what it made."""
        count = self.blocks
        size = self.inputs // count
        square = self.groups * count * (size + 1) ** 2
        refresh = self._passes_over(square, 10 if self.config.b_s > 0 else 4) + self.rates.calls(_CALLS_REFRESH)
        refresh += self.rates.seconds("factor", self.wide, size, self.groups * count * size**3)
        refresh += self._passes_over(self.groups * count * size**2, 8)
        sides = self.config.region.block_products
        solve = sides * self._block_product(size) + self._passes_over(self.numbers, 6) + self.rates.calls(_CALLS_FACTOR)
        if self.config.region.two_sided:
            outputs = block_count(self.outputs, self.config.block_size)
            side = self.outputs // outputs
            flops = self.groups * outputs * INVERSE_ROOT_FLOPS * side**3
            refresh += self.rates.seconds("batched", self.wide, side, flops)
            refresh += self._block_product(size) + self._block_product(side)
            refresh += self.rates.calls(_CALLS_OUTPUT_REFRESH)
        return refresh, solve

    def _block_product(self, size: int) -> float:
        """All numbers times a block-diagonal matrix of blocks of ``size``."""
        flops = 2.0 * self.numbers * size
        if size < self.inputs:
            return self.rates.seconds("batched", self.wide, size, flops)
        return self.rates.seconds("matmul", self.wide, (self.outputs * size**2) ** (1 / 3), flops)

    def _iterations(self) -> float:
        k = self.config.cg_iterations
        return self._passes_over(self.numbers, 8 + 11 * k) + self.rates.calls(_CALLS_CG + _CALLS_CG_ITERATION * k)

    def _matrix_free_product(self) -> float:
        """One product with the kept inputs: ``4 N d m``, in one reading of them where the GPU's fused kernel takes it."""
        flops = 4.0 * self.rows * self.numbers
        outputs = self.rows * self.groups * self.outputs
        inputs = self.rows * self.groups * self.inputs / self.block.taps
        time = self._layer_product(self.wide, flops)
        fused = self.block.weight.device.type != "cpu" and fused_matvec_pays(self.inputs, self.outputs)
        traffic = self._passes_over(inputs, 1) if fused else self._passes_over(2 * inputs + 4 * outputs, 1)
        return time + traffic + self.rates.calls(12)

    def _dual(self) -> float:
        n, d = max(1, self.rows), self.inputs
        side = min(n, d)
        groups = self.groups
        gram = self.rates.seconds(
            "matmul", self.wide, (side * side * max(n, d)) ** (1 / 3), 2.0 * groups * side**2 * max(n, d)
        )
        factor = self.rates.seconds("factor", self.wide, side, groups * side**3)
        products = 2 if n < d else 0  # into the space of rows and back
        flops = 2.0 * self.numbers * (products * n + 2 * side)
        solve = self.rates.seconds("matmul", self.wide, (n * self.outputs * d) ** (1 / 3), flops)
        unfold = self._passes_over(groups * n * d, 6)
        return gram + factor + solve + unfold + self.rates.calls(_CALLS_DUAL)

    def _region(self) -> float:
        config = self.config
        time = self._passes_over(self.numbers, 2)  # <h, g~>
        if config.region.whitens:
            short, long = sorted((self.outputs, self.columns))
            flops = self.groups * orthogonalize_flops(short, long)
            dtype = products_dtype(self.wide, self.block.weight.device, short)
            time += self.rates.seconds("matmul", dtype, (short * short * long) ** (1 / 3), flops)
            time += self._passes_over(self.numbers, 6 + 4 * STEPS) + self.rates.calls(_CALLS_ORTHOGONALIZE)
        elif config.region.two_sided and config.factored:
            side = self.outputs // block_count(self.outputs, config.block_size)
            time += self.rates.seconds("batched", self.wide, side, 2.0 * self.numbers * side)
            time += self._passes_over(self.numbers, 2) + self.rates.calls(4)
        elif config.region.passes:
            time += self._passes_over(self.numbers, config.region.passes) + self.rates.calls(6)
        return time
