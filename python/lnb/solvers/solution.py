"""What solvers hand to the trust region: the directions of a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


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
