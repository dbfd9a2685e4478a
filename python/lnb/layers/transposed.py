"""Transformers' ``Conv1D``, the linear layer of GPT-2: ``y = x W + b`` with the weight ``[d_in, d_out]``.

It is claimed where Transformers is imported, which this module does not do itself. :mod:`lnb.routes.turned` says what a step
does with the weight.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from lnb.layers.capture import Capture
from lnb.layers.kind import LayerKind
from lnb.layers.linear import project
from lnb.layers.probed import ProbedLayer


class ProbedTransposed(ProbedLayer):
    """An attached layer of a transposed weight; its attached classes are made of this one and of the layer's own."""

    _lnb_original = nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own forward, with its moment probe."""
        capture = self._lnb_captures["weight"]
        # Compiled code does not ask what may change from step to step: it would be compiled anew.
        if not torch.compiler.is_compiling() and capture.idle:
            own: Tensor = super().forward(x)
            return own
        layer: Any = self
        output = project(x, layer.weight.t(), layer.bias, capture, layer.weight)
        capture.keep(layer.weight, x, output)
        capture.count(layer.weight, x, output, output.numel() // layer.weight.shape[1])
        return output


class Absent(nn.Module):
    """A class that no layer has, while Transformers is not imported."""


class TransposedKind(LayerKind):
    """``Conv1D``: every leading dimension of its input counts samples."""

    probed = ProbedTransposed
    words = "linear layer of a transposed weight"
    transposed = True

    @property
    def original(self) -> type[nn.Module]:
        """Transformers' class, once anything has imported it."""
        found = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", Absent)
        assert issubclass(found, nn.Module)
        return found

    @property
    def title(self) -> str:
        """What the class is called."""
        return "Transformers' Conv1D"

    def captures(self, module: nn.Module) -> dict[str, Capture]:
        """One, of the input."""
        weight = module._parameters["weight"]
        assert weight is not None, "what has no weight is not attached"
        return {"weight": Capture(weight.shape[0])}
