"""What one layer costs per step: its arithmetic over the device's rates.

Times are the sum of arithmetic, memory traffic and calls: on a CPU little of these overlaps, and on an accelerator the
largest of them decides, which the sum exceeds by less than a factor of three.
"""

from __future__ import annotations

from dataclasses import dataclass

from lnb.config import Config
from lnb.context import gathered_moments
from lnb.layers.capture import Samples
from lnb.layers.claimed import Layer
from lnb.planning.pricing import Pricing
from lnb.planning.rates import Rates
from lnb.statistics.factored import block_count
from lnb.statistics.orthogonalize import STEPS, orthogonalize_flops, products_dtype

# Calls of small operations, counted on the CPU: what every layer needs beside its solution, and a spectral step.
_CALLS_UPDATE = 12
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


def layer_cost(layer: Layer, config: Config, samples: Samples, rates: Rates) -> Cost:
    """The cost of a layer, for the number of samples that one step sees.

    Args:
        layer: the layer.
        config: its own settings, with a solver other than ``"auto"``.
        samples: of one step.
        rates: of its device.
    """
    price = Pricing(layer, config, samples, rates)
    refresh, solve = config.method.seconds(price)
    return Cost(
        gather=0.0 if config.keeps_inputs else _gather(price),
        refresh=refresh,
        solve=solve,
        region=_region(price),
        update=price.passes_over(price.numbers, 12) + rates.calls(_CALLS_UPDATE),
        passes=_forward_and_backward(price, samples.input_grad),
        refresh_every=config.refresh_every,
    )


def _forward_and_backward(price: Pricing, input_grad: bool) -> float:
    dtype = price.layer.weight.dtype
    outputs = price.samples * price.groups * price.outputs
    flops = (3 if input_grad else 2) * 2.0 * price.inputs * outputs
    inputs = price.samples * price.groups * price.inputs / price.layer.taps
    traffic = dtype.itemsize * (8 * outputs + 3 * inputs)
    return price.layer_product(dtype, flops) + price.rates.traffic(traffic) + price.rates.calls(16)


def _gather(price: Pricing) -> float:
    """The second moment of the samples that are read, and the pass over them."""
    layer, config, rates = price.layer, price.config, price.rates
    samples = price.samples / config.sample_every
    dtype = config.moment_dtype or layer.weight.dtype
    matrices = gathered_moments(layer, config)
    d, taps = price.inputs // price.blocks, layer.taps
    if layer.by_shifts:
        flops = layer.moment_flops(d) * samples * matrices
        return rates.seconds("conv_gram", dtype, max(1, d // taps), flops) + rates.calls(30)
    time = rates.seconds("gram", dtype, d, matrices * samples * d**2)
    if taps > 1:  # patches are made
        return time + price.passes_over(samples * d * matrices, 3) + rates.calls(30)
    return time + price.passes_over(matrices * (d + 1) ** 2, 2) + rates.calls(10)


def _region(price: Pricing) -> float:
    config, rates, numbers = price.config, price.rates, price.numbers
    time = price.passes_over(numbers, 2)  # <h, g~>
    if config.region.whitens:
        short, long = sorted((price.outputs, price.columns))
        flops = price.groups * orthogonalize_flops(short, long)
        dtype = products_dtype(price.wide, price.layer.weight.device, short)
        time += rates.seconds("matmul", dtype, (short * short * long) ** (1 / 3), flops)
        time += price.passes_over(numbers, 6 + 4 * STEPS) + rates.calls(_CALLS_ORTHOGONALIZE)
    elif config.region.two_sided and config.factored:
        side = price.outputs // block_count(price.outputs, config.block_size)
        time += rates.seconds("batched", price.wide, side, 2.0 * numbers * side)
        time += price.passes_over(numbers, 2) + rates.calls(4)
    elif config.region.passes:
        time += price.passes_over(numbers, config.region.passes) + rates.calls(6)
    return time
