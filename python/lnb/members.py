"""The parameters that one optimizer moves, the claimed layers among them, and the places of these in the model."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn

from lnb.layers.claimed import Layer


class Members:
    """The parameters of some groups and the layers that they make, found once for the same groups, because every step asks
    for them.

    Args:
        layers: all that are claimed.
        param_groups: the optimizer's.

    Attributes:
        parameters: of all groups, in their order.
        groups: of every parameter.
        layers: those whose weight is in a group: another optimizer may own the others.
    """

    def __init__(self, layers: list[Layer], param_groups: list[dict[str, Any]]) -> None:
        self._claimed = layers
        self._groups = [(group, list(group["params"])) for group in param_groups]
        self.parameters: list[nn.Parameter] = [parameter for _, members in self._groups for parameter in members]
        self.groups = {parameter: group for group, members in self._groups for parameter in members}
        self.layers = [layer for layer in layers if layer.weight in self.groups]
        self._positions: _Positions | None = None

    def hold(self, layers: list[Layer], param_groups: list[dict[str, Any]]) -> bool:
        """Whether these are still the members of the layers and groups: users may change the lists of parameters."""
        if layers is not self._claimed or len(param_groups) != len(self._groups):
            return False
        for group, (own, members) in zip(param_groups, self._groups, strict=True):
            given = group["params"]
            if group is not own or len(given) != len(members) or not all(map(operator.is_, given, members)):
                return False
        return True

    def stand(self, model: nn.Module) -> bool:
        """Whether every layer stands in ``model`` where it was claimed, and unchanged: then neither
        :meth:`lnb.layers.claimed.Layer.change` nor ``replacement`` has anything to report. False where only a closer look can
        tell.
        """
        if self._positions is None or not self._positions.are_of(model):
            self._positions = _Positions(model, self.layers)
        return self._positions.hold()


class _Positions:
    """The paths from a model to its layers, each step of them once, and what the layers hold."""

    def __init__(self, model: nn.Module, layers: list[Layer]) -> None:
        self._model = model
        self._complete = True
        children: dict[tuple[int, str], tuple[nn.Module, str, nn.Module]] = {}
        self._held: list[tuple[nn.Module, type[nn.Module], str, nn.Parameter | None]] = []
        for layer in layers:
            for module, path in zip(layer.modules, layer.paths, strict=True):
                current: nn.Module | None = model
                for name in path.split(".") if path else ():
                    child = None if current is None else current._modules.get(name)
                    if current is not None and child is not None:
                        children[id(current), name] = current, name, child
                    current = child
                self._complete &= current is module and layer.change() is None
                roles = (layer.weight_role, layer.weight), (layer.bias_role, layer.bias)
                self._held += [(module, type(module), role, own) for role, own in roles if role is not None]
        self._children = list(children.values())

    def are_of(self, model: nn.Module) -> bool:
        """Whether these are the layers in ``model``."""
        return model is self._model

    def hold(self) -> bool:
        """Whether everything was found in its place, and is still there."""
        if not self._complete:
            return False
        for parent, name, child in self._children:
            if parent._modules.get(name) is not child:
                return False
        for module, kind, role, parameter in self._held:
            if type(module) is not kind or module._parameters.get(role) is not parameter:
                return False
        return True
