"""Weights ``[d_in, d_out]``, as Transformers' ``Conv1D`` has them, in steps that expect ``[d_out, d_in]``.

Every such weight has a *stand-in*, a parameter ``[d_out, d_in]`` that the stages of a step treat like any other. In a process
that trains alone nothing is copied: when the optimizer is made, a weight is laid out in memory by columns, so that its
transpose is contiguous, and is what the stand-in is. Its shape, its values and its name stay; as with ``channels_last`` images,
``view(-1)`` of it is an error, and ``reshape(-1)`` is not. Autograd gives it gradients of the same layout, and forward passes
multiply by the transpose, which libraries do just as fast. All kernels serve such a layer as they serve ``nn.Linear``.

Elsewhere the stand-in has memory of its own, to which a step copies the weight and the gradient, and from which it copies the
weight back: 32 bytes of traffic for each float32 parameter. So it is where ``torch.distributed`` runs, because
``DistributedDataParallel`` takes strides from parameters when it is made and again later, and mixes up gradients where they
have changed in between, and ``fully_shard`` takes contiguous parameters alone; and for a weight that is a part of something
larger.

State in the weight's shape is ``[d_out, d_in]``, as it belongs to the stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lnb.context import LayerContext, StepContext
from lnb.layers.claimed import Layer


class Turned:
    """The stand-ins of one optimizer.

    Args:
        layers: of the model. What is frozen is left as it is until it moves.
        names: of its parameters.

    Attributes:
        names: of parameters; a stand-in has that of the parameter for which it stands.
    """

    def __init__(self, layers: Sequence[Layer], names: dict[nn.Parameter, str]) -> None:
        self.names = dict(names)
        self._owners: dict[nn.Parameter, nn.Parameter] = {}
        self._layers: dict[Layer, _TurnedLayer] = {}
        self._any = any(layer.transposed for layer in layers)
        for layer in layers:
            if layer.transposed and layer.weight.requires_grad:
                self._layers[layer] = self._made(layer)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._any

    def with_stand_ins(self, context: StepContext) -> StepContext:
        """``context`` with every parameter that has a stand-in replaced by it."""
        groups = dict(context.groups)
        states = _States(context.states, self._owners)
        layers = [self._turned(one, groups, states) if one.layer.transposed else one for one in context.layers]
        return replace(context, layers=layers, groups=groups, states=states)

    def finish(self) -> None:
        """After a step, copy to weights what only their stand-ins have."""
        for layer, turned in self._layers.items():
            if turned.moved:
                turned.moved = False
                with torch.no_grad():
                    layer.weight.copy_(turned.weight.t())

    def _made(self, layer: Layer) -> _TurnedLayer:
        turned = _TurnedLayer(layer)
        self._owners[turned.weight] = layer.weight
        self.names[turned.weight] = self.names.get(layer.weight, "(added)")
        return turned

    def _turned(self, one: LayerContext, groups: dict[nn.Parameter, dict[str, Any]], states: _States) -> LayerContext:
        layer = one.layer
        turned = self._layers.get(layer)
        if turned is not None and not turned.stands_for(layer.weight):
            del self._owners[turned.weight], self.names[turned.weight]
            turned = None
        if turned is None:
            turned = self._layers[layer] = self._made(layer)
        turned.follow(layer.weight)
        groups[turned.weight] = groups[layer.weight]
        parameters = [turned.weight if parameter is layer.weight else parameter for parameter in one.parameters]
        return replace(one, layer=turned, parameters=parameters, states=states)


class _TurnedLayer(Layer):
    """A layer, of a stand-in for its weight.

    Attributes:
        is_copy: whether the stand-in has memory of its own.
        moved: whether that may have to be copied back.
    """

    def __init__(self, layer: Layer) -> None:
        weight = layer.weight
        self.is_copy = not _lay_out_by_columns(weight)
        self.moved = False
        turned = weight.detach().t()
        super().__init__(
            layer.name,
            nn.Parameter(turned.contiguous() if self.is_copy else turned),
            layer.bias,
            layer.modules,
            layer.paths,
            layer.groups,
            layer.kernel,
            layer.weight_role,
            layer.bias_role,
        )

    def stands_for(self, weight: Tensor) -> bool:
        """Whether the stand-in is that of ``weight`` as it is now."""
        own = self.weight
        if own.dtype != weight.dtype or own.device != weight.device:
            return False
        return self.is_copy or (own.data_ptr() == weight.data_ptr() and weight.t().is_contiguous())

    def follow(self, weight: nn.Parameter) -> None:
        """Take over the gradient, and the values too if the stand-in has memory of its own."""
        if self.is_copy:
            self.moved = True
            with torch.no_grad():
                self.weight.copy_(weight.t())
        self.weight.requires_grad_(weight.requires_grad)
        self.weight.grad = None if weight.grad is None else weight.grad.t().contiguous()


def _lay_out_by_columns(weight: nn.Parameter) -> bool:
    """Have ``weight`` lie in memory like its transpose; False where others rely on how it lies."""
    if weight.t().is_contiguous():
        return True
    is_alone = weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
    if not is_alone or (dist.is_available() and dist.is_initialized()):
        return False
    weight.data = _by_columns(weight)
    if weight.grad is not None:  # autograd adds to it, or not: what it makes anew has the weight's layout
        weight.grad = _by_columns(weight.grad)
    return True


def _by_columns(matrix: Tensor) -> Tensor:
    return matrix.detach().t().contiguous().t()


class _States:
    """The states of parameters, and of stand-ins, which are those of the parameters that they stand for."""

    def __init__(self, states: Any, owners: dict[nn.Parameter, nn.Parameter]) -> None:
        self._states, self._owners = states, owners

    def __getitem__(self, parameter: nn.Parameter) -> dict[str, Any]:
        found: dict[str, Any] = self._states[self._owners.get(parameter, parameter)]
        return found

    def get(self, parameter: nn.Parameter, default: Any = None) -> Any:
        """The state, if there is one."""
        return self._states.get(self._owners.get(parameter, parameter), default)

    def pop(self, parameter: nn.Parameter, default: Any = None) -> Any:
        """Drop the state."""
        return self._states.pop(self._owners.get(parameter, parameter), default)
