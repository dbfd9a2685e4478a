"""``nn.Linear``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.layers.capture import Capture
from lnb.layers.kind import LayerKind
from lnb.layers.probed import ProbedLayer
from lnb.layers.sharing import moment_of
from lnb.sharded.dtensors import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


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


def _project_subclass(x: Tensor, weight: Tensor, bias: Tensor | None, capture: Capture) -> Tensor:
    """:func:`project` where the weight is of another type than ``nn.Parameter``, as that of a tensor parallel layer is."""
    if is_sharded((weight,)):
        from lnb.sharded.parallel import project_shards  # imports torch's distributed packages

        def project_here(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            if capture.moments_on and x.shape[-1] != capture.d_in:
                raise TypeError(
                    f"the {capture.d_in} inputs of a linear layer were shared out over ranks after LNB was built, and here are "
                    f"{x.shape[-1]}; call parallelize_module with RowwiseParallel before lnb.LNB(model)"
                )
            return project(x, w, b, capture, weight)

        return project_shards(x, cast("DTensor", weight), bias, project_here)
    return project(x, weight, bias, capture, weight)


class ProbedLinear(ProbedLayer, nn.Linear):
    """An attached ``nn.Linear``."""

    _lnb_original = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """``nn.Linear``'s forward, with the layer's moment probe."""
        capture, weight, bias = self._lnb_captures["weight"], self.weight, self.bias
        # Compiled code does not ask what may change from step to step: it would be compiled anew.
        if not torch.compiler.is_compiling() and capture.idle and type(weight) is nn.Parameter:
            return F.linear(input, weight, bias)
        if type(weight) is nn.Parameter:
            output = project(input, weight, bias, capture, weight)
        else:
            output = _project_subclass(input, weight, bias, capture)
        capture.keep(weight, input, output)
        capture.count(weight, input, output, output.numel() // self.out_features)
        return output


class LinearKind(LayerKind):
    """``nn.Linear``: every leading dimension of its input counts samples."""

    original = nn.Linear
    probed = ProbedLinear
    words = "linear layer"
    takes_shards = True

    def captures(self, module: nn.Module) -> dict[str, Capture]:
        """One, of the input."""
        return {"weight": Capture(cast(nn.Linear, module).in_features)}
