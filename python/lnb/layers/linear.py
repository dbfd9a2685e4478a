"""``nn.Linear``."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

import lnb_kernels as lk
from lnb.layers.capture import Capture
from lnb.layers.kind import LayerKind
from lnb.layers.probed import ProbedLayer
from lnb.layers.sharing import moment_of


def project(x: Tensor, weight: Tensor, bias: Tensor | None, capture: Capture, owner: Tensor) -> Tensor:
    """``F.linear(x, weight, bias)`` that gives the probe of ``capture`` the second moment of ``x``.

    Args:
        x: ``[..., d_in]``.
        weight: ``[m, d_in]``, of the parameter ``owner``, or all of it.
        bias: ``[m]`` or None.
        capture: the layer's.
        owner: the parameter that has to move for the probe to be switched on.
    """
    probe = capture.probe_for(owner)
    shared = moment_of(x, capture, probe)
    product: Tensor = lk.linear(x, weight, bias, probe=probe, shared=shared, **capture.reading)
    return product


class ProbedLinear(ProbedLayer, nn.Linear):
    """An attached ``nn.Linear``."""

    _lnb_original = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """``nn.Linear``'s forward, with the layer's moment probe."""
        capture = self._lnb_captures["weight"]
        output = project(input, self.weight, self.bias, capture, self.weight)
        capture.keep(self.weight, input, output)
        capture.count(self.weight, input, output, output.numel() // self.out_features)
        return output


class LinearKind(LayerKind):
    """``nn.Linear``: every leading dimension of its input counts rows."""

    original = nn.Linear
    probed = ProbedLinear
    words = "linear layer"

    def captures(self, module: nn.Module) -> dict[str, Capture]:
        """One, of the input."""
        return {"weight": Capture(cast(nn.Linear, module).in_features)}
