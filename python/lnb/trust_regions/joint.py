"""The trust region ``"global"``, the paper's rule: the changes of all layers' outputs are bounded together."""

from __future__ import annotations

from torch import Tensor

from lnb.trust_regions.base import Steps, TrustRegion, layer_scale


class Global(TrustRegion):
    """Every direction is divided by ``max(min_norm, sqrt(sum <h, g~>))``, the sum over all layers (arXiv:2502.01131)."""

    name = "global"
    by_rows = True
    joint = True
    scales_whole_steps = True

    def scales(self, steps: Steps) -> Tensor:
        """One number for all."""
        return layer_scale(steps.total, steps.min_norm).expand(len(steps.products)).clone()
