"""The trust region ``"layer"``: the change of each layer's outputs is bounded."""

from __future__ import annotations

from torch import Tensor

from lnb.trust_regions.base import Steps, TrustRegion, layer_scale


class Layer(TrustRegion):
    """Every layer's direction is divided by its own ``max(min_norm, sqrt(<h, g~>))``."""

    name = "layer"
    by_rows = True
    scales_whole_steps = True

    def scales(self, steps: Steps) -> Tensor:
        """One number for each layer."""
        return layer_scale(steps.products, steps.min_norm)
