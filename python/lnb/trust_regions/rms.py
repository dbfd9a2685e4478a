"""The trust region ``"rms"``: steps as large as AdamW's, so that a rate found for AdamW carries over."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb.statistics.arenas import constant
from lnb.trust_regions.base import Steps, TrustRegion

ADAMW_RMS = 0.2
"""The root mean square of AdamW's steps as it is usually measured (Liu et al., arXiv:2502.16982)."""

_TINY = 2.0**-64


class RootMeanSquare(TrustRegion):
    """The root mean square of each layer's step is :data:`ADAMW_RMS`. The bias, which no ridge holds back, is scaled with it."""

    name = "rms"

    def scales(self, steps: Steps) -> Tensor:
        """What brings each layer's step to that size."""
        sizes = [0] * len(steps.products)
        for owner, direction in zip(steps.owners, steps.directions, strict=True):
            sizes[owner] += direction.numel()
        like = steps.products
        norms = torch.stack(torch._foreach_norm(steps.directions, dtype=like.dtype))  # in which no square overflows
        squares = torch.zeros_like(like).index_add_(0, constant(steps.owners, like.device), norms.square())
        if steps.readable:
            _raise_tiny(steps.directions, squares, steps.owners)
        return rms_scale(squares, constant(tuple(sizes), like.device))


def _raise_tiny(directions: list[Tensor], squares: Tensor, owners: tuple[int, ...]) -> None:
    """Bring directions that no float32 factor brings to the size of a step to unit size, with their ``squares``.

    A device that the host does not wait for is not asked whether there are any: there, directions below 1e-34 move
    parameters less than they should.
    """
    tiny = (squares > 0) & (squares < _TINY**2)
    if not bool(tiny.any()):
        return
    units = torch.where(tiny, torch.ldexp(torch.ones_like(squares), -torch.frexp(squares.sqrt()).exponent), 1.0)
    squares.mul_(units.square())
    for owner, direction in zip(owners, directions, strict=True):
        if bool(tiny[owner]):
            direction.copy_(direction * units[owner : owner + 1])  # in float64: the factor may exceed float32


def rms_scale(squares: Tensor, sizes: Tensor) -> Tensor:
    """What brings each direction to AdamW's usual root mean square; 0 for a zero direction.

    Args:
        squares: ``||D||^2`` of each direction, ``[n]``.
        sizes: its number of entries, ``[n]``.
    """
    wanted = ADAMW_RMS * sizes.to(squares.dtype).sqrt()
    return torch.where(squares > 0, wanted * squares.rsqrt(), 0.0)
