"""What one optimizer moves: the parameters of its groups, and the claimed layers among them."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn

from lnb.layers.claimed import Layer


class Members:
    """The parameters of some groups and the layers that they make, found once for the same groups: every step asks.

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

    def hold(self, layers: list[Layer], param_groups: list[dict[str, Any]]) -> bool:
        """Whether they are those of these layers and groups: users may change the lists of parameters."""
        if layers is not self._claimed or len(param_groups) != len(self._groups):
            return False
        for group, (own, members) in zip(param_groups, self._groups, strict=True):
            given = group["params"]
            if group is not own or len(given) != len(members) or not all(map(operator.is_, given, members)):
                return False
        return True
