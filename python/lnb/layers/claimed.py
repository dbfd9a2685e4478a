"""The claimed layers of a model: which parameters belong to a metric, and which do not and why."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lnb.layers.attach import unsupported_reason
from lnb.layers.capture import Capture, Samples
from lnb.layers.kind import LayerKind
from lnb.layers.probed import ProbedLayer, original_class
from lnb.layers.registry import kind_of
from lnb.sharded.columns import Columns
from lnb.sharded.dtensors import is_dtensor
from lnb.statistics.factored import block_count, tap_parts

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""What ``torch.compile``, activation checkpointing and FSDP call the module inside; no module of a user's has such a name."""


@functools.cache  # asked for every layer in every step
def _blocks_of(inputs: int, kernel: tuple[int, int], limit: int | None) -> int:
    taps = math.prod(kernel)
    channels = inputs // taps
    if limit is None or taps <= limit:
        return block_count(channels, None if limit is None else limit // taps)
    return channels * tap_parts(kernel, limit)


@dataclass(eq=False)
class Layer:
    """One weight with its bias, and the layers that use them: one metric.

    The gradient and the step are matrices ``[groups, rows, columns]`` with the weight's rows, ``rows = d_out / groups``, and
    ``columns = d_in`` plus one for the bias (convolution: ``d_in = C / groups * kh * kw``, in the weight's own order).
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    modules: list[nn.Module]
    paths: list[str]
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    weight_role: str = "weight"
    bias_role: str | None = "bias"
    transposed: bool = False  # whether the weight is [d_in, d_out]
    shape: tuple[int, int, int] = field(init=False)  # groups, rows of the weight in each, d_in
    columns: Columns | None = field(init=False, default=None)  # where ranks share out the inputs
    is_first: bool = field(init=False, default=True)  # False for further rows, cut off, of a layer that counts once

    def __post_init__(self) -> None:
        d_out, *inputs = reversed(self.weight.shape) if self.transposed else self.weight.shape
        self.shape = (self.groups, d_out // self.groups, math.prod(inputs))

    @property
    def d_out(self) -> int:
        """Outputs of the layer, of all groups."""
        return self.shape[0] * self.shape[1]

    @property
    def taps(self) -> int:
        """Inputs of a neuron for each channel: the taps of a kernel."""
        return math.prod(self.kernel)

    @property
    def d_in(self) -> int:
        """Inputs of one neuron, without the bias."""
        return self.shape[2]

    @property
    def d_in_here(self) -> int:
        """The inputs whose columns of the weight are on this rank."""
        return self.shape[2] if self.columns is None else self.shape[2] // self.columns.of

    @property
    def matrix_columns(self) -> int:
        """Columns of the matrix of the gradient: the inputs, and one for the bias."""
        return self.d_in + (self.bias is not None)

    @property
    def numbers(self) -> int:
        """Numbers in the matrices of the gradient, of all groups."""
        groups, rows, _ = self.shape
        return groups * rows * self.matrix_columns

    def input_blocks(self, limit: int | None) -> int:
        """How many equal diagonal blocks of at most ``limit`` inputs the metric is cut into.

        Those of a convolution hold whole channels; where the taps of one are more, equal parts of them.
        """
        return _blocks_of(self.d_in_here, self.kernel, limit)

    @property
    def layer_kind(self) -> LayerKind:
        """What kind of layer it is: the one source of all that depends on that."""
        kind = kind_of(self.modules[0])
        assert kind is not None, "only layers of a kind are claimed"
        return kind

    @property
    def is_convolution(self) -> bool:
        """Whether the samples are patches of images."""
        return self.layer_kind.has_patches

    @property
    def takes_shards(self) -> bool:
        """Whether the forward pass can work on shards of the rows of the weight."""
        return self.layer_kind.takes_shards

    @property
    def packed(self) -> bool:
        """Whether the weight is the query's, key's and value's in one, ``in_proj_weight``."""
        return self.layer_kind.is_packed(self.weight_role)

    @property
    def stride_area(self) -> int:
        """Input positions per output position: 1 but for strided convolutions."""
        return self.layer_kind.stride_area(self.modules[0])

    @property
    def shifts(self) -> int:
        """Differences of two taps of the kernel, up to sign."""
        return self.layer_kind.shifts(self.modules[0])

    @property
    def by_shifts(self) -> bool:
        """Whether its second moments are sums of products of shifted channels, which needs patches at every position."""
        return self.taps > 1 and self.stride_area == 1

    def moment_flops(self, size: int) -> int:
        """Operations of one sample's share in the second moment of ``size`` inputs."""
        if self.by_shifts:
            channels = max(1, size // self.taps)
            return 2 * math.ceil(self.shifts * size / (channels * self.taps)) * channels**2
        return (size + 1) ** 2  # one half of the symmetric product, two operations each

    @property
    def samples(self) -> Samples:
        """What the layer's passes worked on since the captures were cleared, known without asking the device."""
        found = [capture.counted() for capture in self.captures]
        return Samples(sum(each.count for each in found), any(each.input_grad for each in found))

    @property
    def sees_data(self) -> bool:
        """Whether no backward pass went on to the layer's inputs: they are data, or made by frozen layers."""
        return not self.samples.input_grad

    @property
    def kind(self) -> str:
        """What the layer is, in words."""
        return self.layer_kind.words

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight, and the bias where it takes part in the metric."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def describe(self) -> str:
        """The size of the metric, in words."""
        inputs = f"{self.d_in} inputs" + (" and the bias" if self.bias is not None else "")
        if self.groups == 1:
            return inputs
        return f"{self.groups} {self.layer_kind.group_words} of {inputs}"

    @property
    def captures(self) -> list[Capture]:
        """What the modules of this layer captured; empty for a layer that was detached since."""
        return [module._lnb_captures[self.weight_role] for module in self.modules if isinstance(module, ProbedLayer)]

    def change(self) -> str | None:
        """What was done to the layer since it was claimed that its metric cannot follow, or None."""
        for module, path in zip(self.modules, self.paths, strict=True):
            if not isinstance(module, ProbedLayer):
                return f"layer {path!r} was detached"
            for role, parameter in ((self.weight_role, self.weight), (self.bias_role, self.bias)):
                if role is not None and module._parameters.get(role) is not parameter:
                    return f"the {role} of layer {path!r} was re-assigned"
        return None

    def replacement(self, model: nn.Module) -> str | None:
        """The module of this layer that is no longer in ``model`` because another took its place, or None. One that was
        removed altogether, or put inside another module, does not count.
        """
        for module, path in zip(self.modules, self.paths, strict=True):
            current = _find(model, path)
            if current is not None and current is not module and module not in set(model.modules()):
                return f"layer {path!r} was replaced by another {type(current).__name__}"
        return None

    def join(self, parts: list[Tensor]) -> Tensor:
        """Tensors of the shapes of the weight (and the bias) as one matrix ``[groups, rows, columns]``."""
        matrix = parts[0].reshape(self.shape)
        if len(parts) == 1:
            return matrix
        return torch.cat([matrix, parts[1].reshape(self.groups, -1, 1)], dim=-1)

    def split(self, matrix: Tensor) -> list[Tensor]:
        """A matrix ``[groups, rows, columns]`` as contiguous tensors of the weight's (and the bias's) shape."""
        if matrix.shape[-1] == self.d_in:
            return [matrix.reshape(self.weight.shape)]
        parts = matrix[..., :-1].reshape(self.weight.shape), matrix[..., -1].reshape(-1)
        return [part.contiguous() for part in parts]  # a view with gaps would leave the fast path of the update

    def shaped(self, parts: list[Tensor]) -> list[Tensor]:
        """Matrices ``[groups, rows, d_in]`` (and ``[groups, rows, 1]``) in the shapes of the weight (and the bias)."""
        weight = parts[0].reshape(self.weight.shape)
        return [weight, parts[1].reshape(-1)] if len(parts) == 2 else [weight]

    def per_column(self, per_channel: Tensor) -> Tensor:
        """A value per input channel ``[C]`` as one per column of the weight ``[groups, d_in]``."""
        return per_channel.reshape(self.groups, -1).repeat_interleave(self.taps, dim=-1)


@dataclass(frozen=True)
class Inventory:
    """The layers of a model, and for every other parameter why it is in none."""

    layers: list[Layer]
    names: dict[nn.Parameter, str]
    reasons: dict[nn.Parameter, str]


def take_inventory(model: nn.Module, exclude: Iterable[nn.Module] = ()) -> Inventory:
    """Sort the parameters of an attached ``model`` into layers and others."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    excluded = {id(inner) for module in exclude for inner in module.modules()}
    users = _users(model)
    paths = {module: path for path, module in model.named_modules()}
    own = {parameter: without_wrappers(model, name) for parameter, name in names.items()}
    layers: list[Layer] = []
    reasons: dict[nn.Parameter, str] = {}
    for parameter, uses in users.items():
        reason = _reason_against(parameter, uses, users, excluded)
        if reason is not None:
            reasons[parameter] = reason
            continue
        modules = [module for module, _ in uses]
        kind = kind_of(uses[0][0])
        if kind is not None and uses[0][1] in kind.weights(uses[0][0]):
            layers.append(_layer(own, parameter, modules, [paths[module] for module in modules]))
    return Inventory(layers, names, reasons)


def _users(model: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Every parameter with the modules that hold it, and under which name."""
    users: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                users.setdefault(parameter, []).append((module, name))
    return users


def _reason_against(
    parameter: nn.Parameter,
    uses: list[tuple[nn.Module, str]],
    users: dict[nn.Parameter, list[tuple[nn.Module, str]]],
    excluded: set[int],
) -> str | None:
    """Why ``parameter`` belongs to no layer, or None if it does."""
    for module, _ in uses:
        if id(module) in excluded:
            return "excluded"
        if not isinstance(module, ProbedLayer):
            other = (
                unsupported_reason(module) or f"its {type(module).__name__} belongs to a module that does not call it"
            )
            return other if len(uses) == 1 else f"shared with a layer that is not claimed: {other}"
    first, role = uses[0]
    kind = kind_of(first)
    assert kind is not None, "attached layers are of a kind"
    if any(name != role for _, name in uses):
        return "used both as a weight and as a bias"
    if len({type(module) for module, _ in uses}) > 1:
        return "shared by layers of different types"
    pair = next((pair for pair in kind.weights(first).items() if role in pair), None)
    if pair is None:
        return "not the weight of a linear map, nor the bias of a single one"
    weight, bias = _pair(first, pair)
    others = [_pair(module, pair) for module, _ in uses]
    if weight is None or any(w is not weight or b is not bias for w, b in others):
        return "shared by layers whose other parameter differs"
    if bias is not None and {m for m, _ in users[weight]} != {m for m, _ in users[bias]}:
        return "shared by layers whose other parameter differs"
    if kind.transposed and is_dtensor(parameter):
        return "its weight is [d_in, d_out], so that its shards have all outputs and some of the inputs"
    if any(kind.geometry(module) != kind.geometry(first) for module, _ in uses):
        return f"shared by {kind.words}s of different geometry"
    return None


def without_wrappers(model: nn.Module, name: str) -> str:
    """The name that a parameter has in the model itself: plans are saved by it, and loaded where wrappers are others."""
    parts = name.split(".")
    if isinstance(model, DistributedDataParallel | DataParallel):
        parts = parts[1:]
    return ".".join(part for part in parts if part not in _WRAPPERS)


def _find(model: nn.Module, path: str) -> nn.Module | None:
    """The module at ``path``; None where there is none."""
    module: nn.Module | None = model
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def _pair(module: nn.Module, roles: tuple[str, str | None]) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """The weight and the bias of a layer that have the names ``roles``."""
    weight, bias = (None if role is None else module._parameters.get(role) for role in roles)
    return weight, bias


def _layer(names: dict[nn.Parameter, str], weight: nn.Parameter, modules: list[nn.Module], paths: list[str]) -> Layer:
    first = modules[0]
    kind = kind_of(first)
    assert kind is not None, "attached layers are of a kind"
    name, _, role = names[weight].rpartition(".")
    bias_role = kind.weights(first)[role]
    bias = None if bias_role is None else first._parameters[bias_role]
    if role != "weight":
        name = names[weight]  # one of several of its layer
    name = name or original_class(first).__name__
    geometry = kind.groups(first, role), kind.kernel(first)
    return Layer(name, weight, bias, modules, paths, *geometry, role, bias_role, kind.transposed)
