"""What tables of addresses were made for, and whether a step still has the same tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lnb.config import Config
from lnb.context import StepContext
from lnb.layers.claimed import Layer


@dataclass
class Standing:
    """The parameters, layers, groups and states of a step, by identity.

    Attributes:
        parameters: in the order of the step.
        layers: each with its settings, and whether its bias takes part.
        reads: what reads the states, and their keys.
        kept: what these held.
        addresses: where what they held lay.
        groups: of all parameters, the last that were found to be the same.
        places: every group, and the places of its parameters.
        groups_of_layers: of each layer's weight the group, by its identity.
    """

    parameters: list[nn.Parameter]
    layers: list[tuple[Layer, Config, bool]]
    reads: list[tuple[Callable[[str], Any], str]]
    kept: list[Any]
    addresses: list[int]
    groups: dict[nn.Parameter, dict[str, Any]]
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
        reads = [(state.get, key) for state in states for key in keys if key in state]
        kept = [get(key) for get, key in reads]
        return cls(
            parameters,
            [(each.layer, each.config, each.with_bias) for each in context.layers],
            reads,
            kept,
            [value.data_ptr() for value in kept],
            context.groups,
            list(members.values()),
            [id(context.groups[each.layer.weight]) for each in context.layers],
        )

    def holds(self, context: StepContext) -> bool:
        """Whether ``context`` has the same parameters, layers and settings, and the same tensors in its states."""
        if len(context.parameters) != len(self.parameters) or len(context.layers) != len(self.layers):
            return False
        if not all(map(operator.is_, context.parameters, self.parameters)):
            return False
        for each, (owner, config, with_bias) in zip(context.layers, self.layers, strict=True):
            if each.layer is not owner or each.config is not config or each.with_bias != with_bias:
                return False
        if not all(map(operator.is_, [get(key) for get, key in self.reads], self.kept)):
            return False
        if context.groups is not self.groups:  # A parameter may have been moved to another group.
            for group, places in self.places:
                if any(context.groups[self.parameters[i]] is not group for i in places):
                    return False
            self.groups = context.groups
        return True

    def lies_where_it_lay(self) -> bool:
        """Whether nobody gave a kept tensor other memory, as ``value.data = ...`` does."""
        return [value.data_ptr() for value in self.kept] == self.addresses
