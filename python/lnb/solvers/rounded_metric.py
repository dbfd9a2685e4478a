"""The metric of a layer with its products in bfloat16, for conjugate gradients where that is faster."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb.config import Config
from lnb.layers.capture import statistics_dtype
from lnb.layers.claimed import Layer
from lnb.machine import cpu_multiplies_bfloat16

# Multiplications of a product from which rounding its operands costs less than it saves.
_LARGE = 1 << 23
_CHUNK = 128


class RoundedMetric:
    """``v -> (X~'X~/N + ridge diag(1..1, 0)) v`` with the covariance's product in bfloat16, all else in ``v``'s dtype.

    With ``C = E[x x'] - mu mu'`` and ``a = mu'w + b`` (``b = 0`` for a layer without bias), a row ``v = (w, b)`` becomes

        ``(C w + a mu + ridge w, a)``

    and only ``C w`` is rounded: entries to 8 bits, its sums are in float32. Rounding ``E[x x']`` itself would put errors of
    the size of the inputs' offset into every direction; so the result is as insensitive to an offset as the exact one.

    Args:
        moments: ``[X 1]'[X 1]``, or its average, ``[groups, D+1, D+1]``. All zeros without samples.
        ridge: a number, or one per group ``[groups, 1, 1]``.
    """

    def __init__(self, moments: Tensor, ridge: float | Tensor) -> None:
        count = moments[:, -1:, -1:]
        samples = torch.where(count == 0, 1, count)
        self.ridge = ridge
        self.mean = moments[:, -1:, :-1] / samples
        size = self.mean.shape[-1]
        self.covariance = moments.new_empty(len(moments), size, size, dtype=torch.bfloat16)
        for start in range(0, size, _CHUNK):  # in the cache, never as a whole in float32
            part = slice(start, start + _CHUNK)
            centred = moments[:, part, :-1][:, : size - start] / samples
            self.covariance[:, part] = centred.baddbmm_(self.mean[..., part].mT, self.mean, alpha=-1)

    def __call__(self, v: Tensor) -> Tensor:
        """The product with ``v`` ``[groups, m, D]`` or ``[groups, m, D+1]``."""
        size = self.mean.shape[-1]
        weight = v[..., :size]
        along = weight @ self.mean.mT
        result = torch.empty_like(v)
        if v.shape[-1] > size:
            along += v[..., size:]
            result[..., size:] = along
        torch.mul(along, self.mean, out=result[..., :size])
        result[..., :size].addcmul_(weight, torch.as_tensor(self.ridge, dtype=v.dtype, device=v.device))
        result[..., :size] += weight.bfloat16() @ self.covariance
        return result


def rounds_products(layer: Layer, config: Config) -> bool:
    """Whether conjugate gradients on the layer's second moment take their products in bfloat16.

    They do with ``moment_dtype=torch.bfloat16`` on a CPU that gains by it; accelerators solve in one fused kernel instead.
    """
    weight = layer.weight
    _, outputs, inputs = layer.shape
    wanted = config.moment_dtype == torch.bfloat16 and statistics_dtype(weight.dtype) == torch.float32
    return wanted and weight.device.type == "cpu" and outputs * inputs**2 >= _LARGE and cpu_multiplies_bfloat16()
