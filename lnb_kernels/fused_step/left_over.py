"""Directions of the layers that kernels do not take: by the reference, small layers of one kind in one call.

A model of many odd layers would otherwise start the reference's hundred operations for each of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lnb_kernels.fused_step.layers import SUMS, DirectLayer, offsets
from lnb_kernels.fused_step.reference import direct_layer_

_STACKED = (
    1 << 22
)  # entries of layers that are stacked: the calls of larger ones are worth their launches, and their memory is not


@dataclass(frozen=True)
class _LeftOver:
    """A layer, with its parts of what all layers write, and its shares."""

    layer: DirectLayer
    partials: Tensor
    mixed_bias: Tensor
    share: Tensor
    bias_share: Tensor | None

    @property
    def kind(self) -> Hashable:
        """What layers of one call have in common."""
        tensors = vars(self.layer).values()
        return tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors)


def direct_left_over_(
    layers: Sequence[DirectLayer],
    served: Sequence[bool],
    partials: Tensor,
    mixed_biases: Tensor,
    shares: Tensor,
    bias_shares: Tensor | None,
    decay: float,
    take: float,
    ok: Tensor | None,
) -> None:
    """:func:`lnb_kernels.fused_step.direct_layers_` of the layers that a kernel has not ``served``."""
    places = offsets([layer.rows for layer in layers], [layer.column_blocks for layer in layers])
    members = [
        _LeftOver(
            layer, partials[entry : entry + SUMS * layer.rows * layer.column_blocks],
            mixed_biases[row : row + layer.rows], shares[i], None if bias_shares is None else bias_shares[i],
        )
        for i, (layer, (row, entry)) in enumerate(zip(layers, places, strict=True)) if not served[i]
    ]  # fmt: skip
    alike: dict[Hashable, list[_LeftOver]] = {}
    for member in members:
        alike.setdefault(member.kind, []).append(member)
    for found in alike.values():
        most = max(1, _STACKED // found[0].layer.gradient.numel())
        for first in range(0, len(found), most):
            _direct(found[first : first + most], decay, take, ok)


def _direct(members: Sequence[_LeftOver], decay: float, take: float, ok: Tensor | None) -> None:
    first = members[0]
    if len(members) == 1:
        direct_layer_(
            first.layer, first.partials, first.mixed_bias, first.share, first.bias_share, decay, take, ok
        )  # fmt: skip
        return
    layers = [member.layer for member in members]
    momentum, directions = ([getattr(layer, name) for layer in layers] for name in ("momentum", "direction"))
    stacked = DirectLayer(
        torch.stack(directions),
        torch.stack(momentum),
        torch.stack([layer.gradient for layer in layers]),
        _stack([layer.bias_gradient for layer in layers], flat=True),
        _stack([layer.bias_momentum for layer in layers], flat=True),
        torch.stack([layer.inverse for layer in layers]),
        _stack([layer.mean for layer in layers]),
        torch.stack([layer.root for layer in layers]),
    )
    own = [member.partials.view(first.layer.column_blocks, -1) for member in members]
    partials, mixed = torch.stack(own, 1), torch.stack([member.mixed_bias for member in members])
    shares = torch.stack([member.share for member in members])
    bias_shares = _stack([member.bias_share for member in members])
    direct_layer_(
        stacked, partials.view(-1), mixed.view(-1), shares.view(-1, *[1] * (stacked.gradient.dim() - 1)),
        None if bias_shares is None else bias_shares.view(-1, 1), decay, take, ok,
    )  # fmt: skip
    written = [
        (momentum, stacked.momentum.unbind()),
        (directions, stacked.direction.unbind()),
        (own, partials.unbind(1)),
    ]
    if first.layer.bias_gradient is not None:
        written.append(([member.mixed_bias for member in members], mixed.unbind()))
    for targets, values in written:
        torch._foreach_copy_(targets, list(values))


def _stack(tensors: Sequence[Tensor | None], flat: bool = False) -> Tensor | None:
    """The tensors of layers of one kind in one; None if they have none. Either all of them have one or none has."""
    given = [tensor.flatten() if flat else tensor for tensor in tensors if tensor is not None]
    return torch.stack(given) if given else None
