"""What ``fused_step.apply_`` moves: parameters with all that belongs to them, by their kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Layers' weights.

    Attributes:
        params: tensors ``[rows, ...]`` to update.
        directions: as many float32 or bfloat16 tensors ``[rows, d]``, or of the parameters' shapes.
        row_scales: as many tensors ``[rows]``, float32 (float64 beside float64 parameters): by which rows of the
            directions are multiplied.
        layers: of each weight, its place in ``scales`` and ``shorter``.
        groups: of each weight, the place of its parameter group in ``lr`` and ``weight_decay``; None for the first.
        masters: of each weight, its float32 master or None; None for no masters. A parameter with a master becomes that,
            rounded.
    """

    params: Sequence[Tensor] = ()
    directions: Sequence[Tensor] = ()
    row_scales: Sequence[Tensor] = ()
    layers: Sequence[int] = ()
    groups: Sequence[int] | None = None
    masters: Sequence[Tensor | None] | None = None


@dataclass(frozen=True)
class Biases:
    """Layers' biases: like :class:`Weights`, without scales of rows and never shortened."""

    params: Sequence[Tensor] = ()
    directions: Sequence[Tensor] = ()
    layers: Sequence[int] = ()
    groups: Sequence[int] | None = None
    masters: Sequence[Tensor | None] | None = None


@dataclass(frozen=True)
class Others:
    """Parameters of no layer, which follow Adam's rule (Kingma and Ba, 2015).

    Attributes:
        params: tensors of any shapes to update.
        gradients: as many tensors of the same shapes.
        averages: likewise, ``m``, updated; float32, or float64 beside float64 parameters.
        squares: likewise, ``v``, updated; of the averages' dtypes.
        shares: ``[n]``, factors of the averages in ``g~``, in float64 on their device.
        corrections: ``[n]``, by which ``v`` is divided, likewise.
        places: of each parameter, its place in ``scales``.
        groups, masters: as for :class:`Weights`.
        finite: None, or bool ``[n]``, on the same device: False is written for a parameter with an entry that has no
            finite direction.
    """

    params: Sequence[Tensor] = ()
    gradients: Sequence[Tensor] = ()
    averages: Sequence[Tensor] = ()
    squares: Sequence[Tensor] = ()
    shares: Tensor | None = None
    corrections: Tensor | None = None
    places: Sequence[int] = ()
    groups: Sequence[int] | None = None
    masters: Sequence[Tensor | None] | None = None
    finite: Tensor | None = None


@dataclass(frozen=True)
class AdamRule:
    """Numbers of the rule of :class:`Others`.

    Attributes:
        beta: share of the old average of gradients, in [0, 1].
        take: finite factor of the gradient in ``g~``: 0, or ``1 - beta`` for Nesterov's look-ahead.
        b_others: share of the old average of squares, in [0, 1].
        epsilon: number >= 0, added to the root of that average.
    """

    beta: float = 0.9
    take: float = 0.0
    b_others: float = 0.999
    epsilon: float = 1e-8
