"""The solver ``"matrix_free"``: conjugate gradients from the inputs themselves; no second moment is formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lnb.solvers.conjugate_gradients import ConjugateGradients, iteration_seconds
from lnb_kernels._triton.crossover import fused_matvec_pays

if TYPE_CHECKING:
    from lnb.config import Config
    from lnb.context import LayerContext
    from lnb.layers.capture import Samples
    from lnb.layers.claimed import Layer
    from lnb.planning.pricing import Pricing


class MatrixFree(ConjugateGradients):
    """The steps of :class:`ConjugateGradients` up to rounding, by products ``X~'(X~ v)`` with the kept inputs ``X~``.

    It keeps the previous direction and the features' averages, ``d_in (d_out + 2)`` numbers, and the layer's inputs from the
    backward pass to the step. Every product costs ``4 N d_in d_out`` operations: less than the second moment of a
    batch of few samples, or of a layer with few outputs.
    """

    name = "matrix_free"
    keeps_inputs = True
    averages_moments = False
    always_fits = False

    def suits(self, layer: Layer, config: Config, samples: Samples, dual: bool) -> str | None:
        """It suits settings whose ridge does not depend on a second moment."""
        return "conjugate gradients on the kept inputs" if config.ridge_mode == "absolute" else None

    def operator(self, context: LayerContext) -> tuple[Tensor | Callable[[Tensor], Tensor], float]:
        """A product with the kept inputs; for a packed in-projection, the second moment, which is gathered all the same."""
        if not context.inputs:
            return super().operator(context)
        layer, inputs = context.layer, context.inputs
        kind, module = layer.layer_kind, layer.modules[0]
        counts = [kind.count(module, x) for x in inputs]
        total = max(1, sum(counts))

        def matvec(direction: Tensor) -> Tensor:
            """``(X~'X~/N + ridge) v``: every input's share, weighted by its samples."""
            flat = direction.reshape(-1, direction.shape[-1])
            shares = [
                kind.matvec(module, x, flat, context.ridge) * (n / total) for x, n in zip(inputs, counts, strict=True)
            ]
            product = torch.stack(shares).sum(0) if len(shares) > 1 else shares[0]
            return product.reshape(direction.shape)

        return matvec, 0.0

    def describe(self, layer: Layer, config: Config) -> tuple[str, str]:
        """How a layer is solved, and why so, in words."""
        iterations, _ = super().describe(layer, config)
        return f"{iterations}, matrix-free", "products with the kept inputs, no matrix is formed"

    def step_flops(self, layer: Layer, config: Config) -> int:
        """All of them depend on the number of samples."""
        return 0

    def sample_flops(self, layer: Layer, config: Config) -> int:
        """FLOPs per sample of the products of one solution."""
        return 4 * layer.numbers * (config.cg_iterations + 1)

    def seconds(self, price: Pricing) -> tuple[float, float]:
        """Times of a refresh and of a solution."""
        products = (price.config.cg_iterations + 1) * _product_seconds(price)
        return 0.0, iteration_seconds(price) + products + price.passes_over(
            price.samples * price.groups * price.inputs, 2
        )


def _product_seconds(price: Pricing) -> float:
    """One product with the kept inputs: ``4 N d m``, in one reading of them where the GPU's fused kernel takes it."""
    flops = 4.0 * price.samples * price.numbers
    outputs = price.samples * price.groups * price.outputs
    inputs = price.samples * price.groups * price.inputs / price.layer.taps
    time = price.layer_product(price.wide, flops)
    fused = price.layer.weight.device.type != "cpu" and fused_matvec_pays(price.inputs, price.outputs)
    traffic = price.passes_over(inputs, 1) if fused else price.passes_over(2 * inputs + 4 * outputs, 1)
    return time + traffic + price.rates.calls(12)
