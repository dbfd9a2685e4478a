"""``nn.Linear``."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

import lnb_kernels as lk
from lnb.layers.capture import Capture
from lnb.layers.kind import LayerKind
from lnb.layers.probed import ProbedLayer


class ProbedLinear(ProbedLayer, nn.Linear):
    """An attached ``nn.Linear``."""

    _lnb_original = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """``nn.Linear``'s forward, with the layer's moment probe."""
        capture = self._lnb_captures["weight"]
        output = lk.linear(input, self.weight, self.bias, probe=capture.probe_for(self.weight), **capture.reading)
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
