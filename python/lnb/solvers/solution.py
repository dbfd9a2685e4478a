"""What solvers are given, and what they hand to the trust region: the directions of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from lnb.context import LayerContext
    from lnb.damping import Agreement
    from lnb.verdict import Verdict

AddRows = Callable[[list["LayerContext"], Tensor], Tensor]
"""Takes sums over the rows of the weights that are here, ``[layers, n]``, and returns the sums over all rows of those layers."""


@dataclass
class SolverInputs:
    """The layers of one device, as the solvers of a step are given them.

    Attributes:
        contexts: the layers.
        averages: ``g~`` of every parameter.
        verdict: whether state may change.
        agreement: of the layers' gradients, where it shortens steps.
        add: where ranks share out the rows of layers, makes sums over all rows, ``[layers, n]``, of some of the layers;
            else None.
    """

    contexts: list[LayerContext]
    averages: dict[nn.Parameter, Tensor]
    verdict: Verdict
    agreement: Agreement | None = None
    add: AddRows | None = None


@dataclass
class Solution:
    """The directions ``h`` of the layers of a step.

    Attributes:
        parts: per layer, one tensor for each of its moving parameters.
        residuals: per layer CG's last residual norms, where there are any.
        summed: the places of the layers in ``sums``. The rows of their directions are multiplied by their agreement already.
        sums: ``<h, g~>``, ``||h_W||^2``, the same before rows were multiplied by their agreement, and ``||g~||^2`` of weight
            and bias, ``[len(summed), 4]``.
    """

    parts: list[list[Tensor]]
    residuals: dict[int, Tensor] = field(default_factory=dict)
    summed: tuple[int, ...] = ()
    sums: Tensor | None = None
