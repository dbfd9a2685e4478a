"""Directions of the layers that kernels do not take: by the reference, small layers of one kind in one call.

A model of many odd layers would otherwise start the reference's hundred operations for each of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lnb_kernels.fused_step.layers import DirectArguments, DirectLayer, places_of
from lnb_kernels.fused_step.reference import direct_layer_

_STACKED = 1 << 22
"""Entries that are stacked at most: larger layers are worth a launch each, and copies of them are not worth their memory."""


_Member = tuple[DirectLayer, DirectArguments]
"""A layer, with its part of what all layers share."""


def direct_left_over_(layers: Sequence[DirectLayer], served: Sequence[bool], given: DirectArguments) -> None:
    """:func:`lnb_kernels.fused_step.direct_layers_` of the layers that a kernel has not ``served``."""
    alike: dict[Hashable, list[_Member]] = {}
    for layer, place, done in zip(layers, places_of(layers), served, strict=True):
        if not done:
            kind = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in vars(layer).values())
            alike.setdefault(kind, []).append((layer, given.of_layer(layer, place)))
    for members in alike.values():
        most = max(1, _STACKED // members[0][0].gradient.numel())
        for first in range(0, len(members), most):
            _direct(members[first : first + most])


def _direct(members: Sequence[_Member]) -> None:
    """Layers of one kind: alone, or stacked."""
    first, given = members[0]
    if len(members) == 1:
        direct_layer_(first, given)
        return
    layers = [layer for layer, _ in members]
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
    own = [part.partials.view(first.column_blocks, -1) for _, part in members]
    partials, mixed = torch.stack(own, 1), torch.stack([part.mixed_biases for _, part in members])
    shares = torch.stack([part.shares for _, part in members])
    bias_shares = _stack([part.bias_shares for _, part in members])
    direct_layer_(
        stacked,
        replace(
            given,
            partials=partials.view(-1),
            mixed_biases=mixed.view(-1),
            shares=shares.view(-1, *[1] * (stacked.gradient.dim() - 1)),
            bias_shares=None if bias_shares is None else bias_shares.view(-1, 1),
        ),
    )
    written = [
        (momentum, stacked.momentum.unbind()),
        (directions, stacked.direction.unbind()),
        (own, partials.unbind(1)),
    ]
    if first.bias_gradient is not None:
        written.append(([part.mixed_biases for _, part in members], mixed.unbind()))
    for targets, values in written:
        torch._foreach_copy_(targets, list(values))


def _stack(tensors: Sequence[Tensor | None], flat: bool = False) -> Tensor | None:
    """The tensors of layers of one kind in one; None if they have none. Either all of them have one or none has."""
    given = [tensor.flatten() if flat else tensor for tensor in tensors if tensor is not None]
    return torch.stack(given) if given else None
