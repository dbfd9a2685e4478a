"""What tables of addresses were made for, and whether a step still has the same tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lnb.config import Config
from lnb.context import StepContext
from lnb.layers.claimed import Layer
from lnb.statistics.arenas import State


@dataclass
class Standing:
    """The parameters, layers, groups and states of a step, by identity.

    Attributes:
        parameters: in the order of the step.
        layers: each with its settings, and whether its bias takes part.
        kept: states, keys, and what these held.
        addresses: where what they held lay.
        places: every group, and the places of its parameters.
        groups_of_layers: of each layer's weight the group, by its identity.
    """

    parameters: list[nn.Parameter]
    layers: list[tuple[Layer, Config, bool]]
    kept: list[tuple[State, str, Any]]
    addresses: list[int]
    places: list[tuple[dict[str, Any], list[int]]]
    groups_of_layers: list[int]

    @classmethod
    def of(cls, context: StepContext, keys: tuple[str, ...]) -> Standing:
        """A record of ``context`` as it is now, with what its states hold under ``keys``."""
        parameters = list(context.parameters)
        states = [context.states[parameter] for parameter in parameters]
        members: dict[int, tuple[dict[str, Any], list[int]]] = {}
        for i, parameter in enumerate(parameters):
            group = context.groups[parameter]
            members.setdefault(id(group), (group, []))[1].append(i)
        kept = [(state, key, state[key]) for state in states for key in keys if key in state]
        return cls(
            parameters,
            [(each.layer, each.config, each.with_bias) for each in context.layers],
            kept,
            [value.data_ptr() for _, _, value in kept],
            list(members.values()),
            [id(context.groups[each.layer.weight]) for each in context.layers],
        )

    def holds(self, context: StepContext) -> bool:
        """Whether ``context`` has the same parameters, layers and settings, and the same tensors in its states."""
        if len(context.parameters) != len(self.parameters) or len(context.layers) != len(self.layers):
            return False
        for parameter, other in zip(context.parameters, self.parameters, strict=True):
            if parameter is not other:
                return False
        for each, (owner, config, with_bias) in zip(context.layers, self.layers, strict=True):
            if each.layer is not owner or each.config is not config or each.with_bias != with_bias:
                return False
        for state, key, value in self.kept:
            if state.get(key) is not value:
                return False
        return all(context.groups[self.parameters[places[0]]] is group for group, places in self.places)

    def lies_where_it_lay(self) -> bool:
        """Whether nobody gave a kept tensor other memory, as ``value.data = ...`` does."""
        return [value.data_ptr() for _, _, value in self.kept] == self.addresses
