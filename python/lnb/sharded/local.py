"""The rows of a model that this process has, as layers and parameters of their own.

Every parameter that is a ``DTensor`` gets a *stand-in*: a parameter that shares the memory of its local shard, and whose
gradient shares that of the local gradient. The stages of a step treat stand-ins like parameters. A rank without rows of a
parameter has a stand-in of one row of zeros, whose gradient is zero: it adds nothing to any sum, and all state that ranks
have in common is kept by the same operations.

A layer of several groups (a grouped convolution, the packed in-projection of attention) whose shards do not end where groups
do becomes one local layer for each group. Everything that belongs to the whole layer is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lnb.context import LayerContext, StepContext
from lnb.layers.claimed import Layer
from lnb.sharded.mesh import sharded_dims

State = MutableMapping[str, Any]


@dataclass(frozen=True)
class Cut:
    """Rows ``begin`` to ``end`` of a local shard, of one group of a layer or of several whole ones.

    Attributes:
        begin: the first row.
        end: the row after the last; ``begin`` where there is none.
        groups: the layer's groups that these rows are of, the first and the one after the last.
    """

    begin: int
    end: int
    groups: tuple[int, int] = (0, 1)

    @property
    def is_empty(self) -> bool:
        """Whether a row of zeros stands for them."""
        return self.begin == self.end


class LocalLayer(Layer):
    """The rows of a layer that are here.

    Attributes:
        whole: the layer.
        place: its number.
        cut: its rows.
        is_first: whether this is the first local layer of the whole one.
    """

    def __init__(
        self, whole: Layer, place: int, number: int, cut: Cut, weight: nn.Parameter, bias: nn.Parameter | None
    ) -> None:
        groups = cut.groups[1] - cut.groups[0]
        name = whole.name if number == 0 else f"{whole.name}[{number}]"
        roles = whole.kernel, whole.weight_role, whole.bias_role
        super().__init__(name, weight, bias, whole.modules, whole.paths, groups, *roles)
        self.whole, self.place, self.cut, self.is_first = whole, place, cut, number == 0
        self.columns = whole.columns

    @property
    def d_in_here(self) -> int:
        """Inputs of the rows as they are here."""
        return self.d_in

    @property
    def d_out(self) -> int:
        """Outputs of the whole layer."""
        return self.whole.d_out


class StandIn:
    """The stand-in for a cut of a parameter."""

    def __init__(self, parameter: nn.Parameter, cut: Cut) -> None:
        self.parameter, self.cut = parameter, cut
        self._shard = local_of(parameter)
        self.local = nn.Parameter(self._rows(self._shard).detach())

    def follow(self) -> None:
        """Bring the stand-in to where the shard is now, and give it the gradient."""
        shard = local_of(self.parameter)
        rows = self._rows(shard)
        if shard is not self._shard or (not self.cut.is_empty and rows.data_ptr() != self.local.data_ptr()):
            self._shard = shard
            self.local.data = rows.detach()
        self.local.requires_grad_(self.parameter.requires_grad)
        gradient = self.parameter.grad
        if gradient is None:
            self.local.grad = None
        elif self.cut.is_empty:
            self.local.grad = torch.zeros_like(self.local)
        else:
            self.local.grad = self._rows(local_of(gradient, like=self.parameter))

    def _rows(self, shard: Tensor) -> Tensor:
        if self.cut.is_empty:
            return shard.new_zeros(1, *self.parameter.shape[1:])
        whole = shard.ndim == 0 or self.cut.end - self.cut.begin == shard.shape[0]
        return shard if whole else shard[self.cut.begin : self.cut.end]


@torch.no_grad()
def local_of(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """The shard of ``tensor`` on this rank, cut like ``like``; a gradient that is still a sum over ranks is added up first."""
    if not isinstance(tensor, DTensor):
        return tensor
    if isinstance(like, DTensor) and tensor.placements != like.placements:
        tensor = tensor.redistribute(placements=like.placements)
    return tensor.to_local()


def cuts_of(layer: Layer) -> list[Cut]:
    """How the local shard of a layer's weight is cut.

    Raises:
        TypeError: it is not cut by rows in a way that this can tell.
    """
    weight = layer.weight
    groups, rows, _ = layer.shape
    local = local_of(weight).shape[0]
    if groups == 1:
        return [Cut(0, local)]
    total, chunk, offset = groups * rows, groups * rows, 0
    if isinstance(weight, DTensor) and sharded_dims(weight):
        dims = sharded_dims(weight)
        if len(dims) > 1:
            raise TypeError(
                f"params: layer {layer.name!r} has {groups} {layer.layer_kind.group_words} and is sharded twice, by "
                f"{weight.placements}; shard it over one dimension of the mesh, or pass exclude=[that layer]. Nothing was changed"
            )
        chunk = -(-total // weight.device_mesh.size(dims[0]))
        offset = min(total, weight.device_mesh.get_local_rank(dims[0]) * chunk)
    if chunk % rows == 0:
        first = min(offset // rows, groups - 1)
        return [Cut(0, local, (first, first + max(1, local // rows)))]
    ends = [min(max(edge * rows - offset, 0), local) for edge in range(groups + 1)]
    return [Cut(ends[i], ends[i + 1], (i, i + 1)) for i in range(groups)]


class PartState(MutableMapping[str, Any]):
    """The state of a cut that is not the first of its parameter: it lies in the parameter's state, under keys with its
    number."""

    def __init__(self, state: dict[str, Any], number: int) -> None:
        self.inside = state
        self._suffix = f"@{number}"

    def __getitem__(self, key: str) -> Any:
        return self.inside[key + self._suffix]

    def __setitem__(self, key: str, value: Any) -> None:
        self.inside[key + self._suffix] = value

    def __delitem__(self, key: str) -> None:
        del self.inside[key + self._suffix]

    def __iter__(self) -> Iterator[str]:
        return (key.removesuffix(self._suffix) for key in list(self.inside) if key.endswith(self._suffix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def first_part(state: dict[str, Any]) -> dict[str, Any]:
    """The part of a parameter's state that belongs to its first cut."""
    return {key: value for key, value in state.items() if "@" not in key}


class LocalStates:
    """The states of stand-ins, which lie in those of the parameters."""

    def __init__(self, states: Any, owners: dict[nn.Parameter, tuple[nn.Parameter, int]]) -> None:
        self._states, self._owners = states, owners
        self._parts: dict[nn.Parameter, PartState] = {}

    def __getitem__(self, local: nn.Parameter) -> State:
        parameter, number = self._owners[local]
        state: dict[str, Any] = self._states[parameter]
        if number == 0:
            return state
        part = self._parts.get(local)
        if part is None or part.inside is not state:
            part = self._parts[local] = PartState(state, number)
        return part

    def get(self, local: nn.Parameter, default: Any = None) -> Any:
        """The state, if it has anything."""
        if local not in self._owners or not self._states.get(self._owners[local][0]):
            return default
        return self[local]

    def pop(self, local: nn.Parameter, default: Any = None) -> Any:
        """Drop the state."""
        return self._states.pop(self._owners[local][0], default)


class Locals:
    """The local layers and parameters of a model.

    Args:
        blocks: the layers.
        parameters: all parameters, of layers and others.
        states: by parameter.
    """

    def __init__(self, layers: list[Layer], parameters: list[nn.Parameter], states: Any) -> None:
        self.stand_ins: dict[nn.Parameter, list[StandIn]] = {}
        self.layers: dict[Layer, list[LocalLayer]] = {}
        for place, layer in enumerate(layers):
            cuts = cuts_of(layer)
            of_all = [[StandIn(parameter, cut) for cut in cuts] for parameter in layer.parameters]
            self.stand_ins.update(zip(layer.parameters, of_all, strict=True))
            self.layers[layer] = [
                LocalLayer(
                    layer, place, number, cut, *(found[number].local for found in of_all), *[None] * (2 - len(of_all))
                )
                for number, cut in enumerate(cuts)
            ]
        for parameter in parameters:
            if parameter not in self.stand_ins:
                shard = local_of(parameter)
                rows = shard.shape[0] if shard.ndim else 1
                self.stand_ins[parameter] = [StandIn(parameter, Cut(0, rows if shard.numel() else 0))]
        self.owners = {
            part.local: (parameter, number)
            for parameter, parts in self.stand_ins.items()
            for number, part in enumerate(parts)
        }
        self.states = LocalStates(states, self.owners)

    def follow(self) -> None:
        """Bring all stand-ins to where the shards and gradients are now."""
        for parts in self.stand_ins.values():
            for part in parts:
                part.follow()

    def with_stand_ins(self, context: StepContext) -> StepContext:
        """``context`` with the model's parameters replaced by their stand-ins, which follow them."""
        layers = [local for one in context.layers for local in self._parts(one)]
        groups = {
            part.local: context.groups[parameter]
            for parameter, parts in self.stand_ins.items()
            if parameter in context.groups
            for part in parts
        }
        others = [part.local for parameter in context.others for part in self.stand_ins[parameter]]
        return StepContext(layers, others, groups, self.states, context.flags, context.gradients_checked)

    def _parts(self, context: LayerContext) -> Iterator[LayerContext]:
        whole = context.layer.shape[0]
        for number, layer in enumerate(self.layers[context.layer]):
            begin, end = layer.cut.groups
            moments, channels = context.moments, context.channels
            if end - begin < whole:
                moments = None if moments is None else moments[begin:end]
                if channels is not None:
                    each = channels.shape[1] // whole
                    channels = channels[:, begin * each : end * each]
            parameters = [self.stand_ins[parameter][number].local for parameter in context.parameters]
            ridge, config = context.ridge, context.config
            yield LayerContext(layer, parameters, self.states, ridge, moments, channels, context.inputs, config)
