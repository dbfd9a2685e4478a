"""The context of one step: the parameters with gradients, their statistics, and whether all of it is finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.layers.capture import Capture, statistics_dtype
from lnb.layers.claimed import Layer
from lnb.members import Members
from lnb.verdict import Verdict
from lnb_kernels import multi_tensor
from lnb_kernels.step_tables import known_finite


@dataclass(eq=False)
class LayerContext:
    """What a step knows of one layer: its parameters, state and settings, and what the last backward pass gathered."""

    layer: Layer
    parameters: list[nn.Parameter]  # the weight, and the bias where it moves with it
    states: Any  # of all parameters
    ridge: float
    moments: Tensor | None  # [groups, blocks, size+1, size+1] of this step
    channels: Tensor | None  # [3, C] of this step
    inputs: list[Tensor]
    config: Config  # the layer's own
    squarable: Tensor | None = None  # []: whether the squares of this step's inputs are in range; None for yes

    @property
    def has_samples(self) -> Tensor:
        """Whether this step's second moment holds any samples and is in range: only then does it count, ``[]``."""
        assert self.moments is not None
        found = self.moments[0, 0, -1, -1] > 0
        return found if self.squarable is None else found & self.squarable

    @property
    def state(self) -> dict[str, Any]:
        """The weight's state."""
        found: dict[str, Any] = self.states[self.layer.weight]
        return found

    @property
    def with_bias(self) -> bool:
        """Whether the bias is a column of this step's matrices."""
        return len(self.parameters) == 2

    @property
    def data_inputs(self) -> float:
        """``data_ridge`` times the layer's inputs, which are not shared out among ranks; 0 where it sees no data."""
        return self.config.data_ridge * self.layer.shape[2] if self.layer.sees_data else 0.0


@dataclass(eq=False)
class StepContext:
    """Everything that one step reads and changes: its layers, its other parameters, their groups and states."""

    layers: list[LayerContext] = field(default_factory=list)
    others: list[nn.Parameter] = field(default_factory=list)
    groups: dict[nn.Parameter, dict[str, Any]] = field(default_factory=dict)
    states: Any = None
    flags: list[Tensor] = field(default_factory=list)  # what else must be finite
    gradients_checked: bool = False  # whether a flag covers all gradients
    sharers: Any = None  # the ranks over which a refresh is shared out

    @functools.cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that moves: those of the layers, then the others."""
        return [parameter for context in self.layers for parameter in context.parameters] + self.others

    @functools.cached_property
    def owners(self) -> tuple[int, ...]:
        """The number of each parameter's layer; every other parameter counts as a layer of its own."""
        of_layers = [i for i, layer in enumerate(self.layers) for _ in layer.parameters]
        return (*of_layers, *range(len(self.layers), len(self.layers) + len(self.others)))

    def by_device(self) -> list[StepContext]:
        """The parts of the step on each device; this one itself where there is only one."""
        if len({parameter.device for parameter in self.parameters}) == 1:
            return [self]
        parts: dict[torch.device, StepContext] = {}
        for each in self.layers:
            self._part(parts, each.layer.weight.device).layers.append(each)
        for parameter in self.others:
            self._part(parts, parameter.device).others.append(parameter)
        return list(parts.values())

    def _part(self, parts: dict[torch.device, StepContext], device: torch.device) -> StepContext:
        return parts.setdefault(device, StepContext(groups=self.groups, states=self.states, sharers=self.sharers))

    def rates(self, like: Tensor) -> Tensor:
        """The learning rate of every layer, ``[layers]``, dtype and device as ``like``.

        Numbers are filled in on the device: a copy from the host would stall it.
        """
        groups = [self.groups[each.layer.weight] for each in self.layers]
        distinct = {id(group): group for group in groups}
        made = {key: rate_like(group["lr"], like) for key, group in distinct.items()}
        if len(made) == 1:
            return made[id(groups[0])].expand(len(groups))
        return torch.stack([made[id(group)] for group in groups])


def rate_like(value: float | Tensor, like: Tensor) -> Tensor:
    """A rate of a parameter group, ``[]``, of the dtype and on the device of ``like``.

    One on the CPU is read and filled in: a copy from the host cannot be captured in a CUDA graph.
    """
    if isinstance(value, Tensor) and (like.is_cpu or not value.is_cpu):
        return value.to(like)
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


def collect(
    model: nn.Module,
    members: Members,
    settings: Callable[[Layer], Config],
    states: Any,
    zeroed: dict[Tensor, tuple[int, int]],
) -> StepContext:
    """Find what has a gradient, and read what the captures hold. Nothing is changed.

    Args:
        model: what LNB was attached to.
        members: the parameters and claimed layers that the optimizer moves.
        settings: each layer's.
        states: the state of every parameter.
        zeroed: gradients that were filled with zeros, by parameter (:func:`mark_zeroed`). A layer whose gradient is
            still that one was reached by no backward pass and has, in effect, no gradient.

    Raises:
        RuntimeError: a claimed layer has a gradient, but no backward pass went through its forward; or it was changed.
        TypeError: a gradient is sparse or complex.
    """
    moving: dict[int, nn.Parameter] = {}  # by identity: a parameter's hash is a call to Python
    for parameter in members.parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse or gradient.is_complex():
            raise TypeError(
                f"a gradient of shape {tuple(parameter.shape)} is sparse or complex; LNB needs dense, real ones"
            )
        moving[id(parameter)] = parameter
    context = StepContext(groups=members.groups, states=states)
    stand = members.stand(model)
    for layer in members.layers:
        captures = layer.captures
        found = _read_captures(layer, captures)
        seen = found[0] is not None or bool(found[2])
        if not seen and zeroed and mark_zeroed(layer.weight) == zeroed.get(layer.weight, ()):
            for parameter in layer.parameters:
                moving.pop(id(parameter), None)
        reached = id(layer.weight) in moving
        change = None if stand else layer.change() or (None if reached and seen else layer.replacement(model))
        if change is not None:
            raise RuntimeError(f"step(): {change} since LNB attached to it; make a new LNB. Nothing was changed")
        if not reached:
            continue
        if not seen and any(capture.moments_on or capture.inputs_on for capture in captures):
            raise RuntimeError(
                f"step(): layer {layer.name!r} has a gradient, but its input was not seen since the last step. Call the layer "
                f"itself in the forward pass (not F.linear or F.conv2d on its weight), call backward() before step(), and reset "
                f"gradients with the optimizer's zero_grad(); or pass exclude=[that layer] to LNB. Nothing was changed"
            )
        config = settings(layer)
        usable = found[0] is not None or (bool(found[2]) and not config.factored)
        if not usable and (config.keeps_inputs or not has_statistics(states.get(layer.weight), layer, config)):
            raise RuntimeError(
                f"step(): layer {layer.name!r} has no statistics, and the last backward pass gathered none: another LNB of the "
                f"same model has made a step since, and decides what is gathered. Let one LNB own a layer. Nothing was changed"
            )
        parameters = [parameter for parameter in layer.parameters if moving.pop(id(parameter), None) is not None]
        ridge = members.groups[layer.weight]["ridge"]
        context.layers.append(LayerContext(layer, parameters, states, ridge, *found, config))
    context.others = list(moving.values())
    return context


def mark_zeroed(parameter: Tensor) -> tuple[int, int] | None:
    """What identifies the gradient of ``parameter`` with its present content; None without one."""
    return None if parameter.grad is None else (id(parameter.grad), parameter.grad._version)


def _read_captures(layer: Layer, captures: list[Capture]) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """What the modules of one layer captured, added up."""
    moments: Tensor | None = None
    channels: Tensor | None = None
    inputs: list[Tensor] = []
    device = layer.weight.device  # the forward pass may run on another
    for capture in captures:
        found, of_channels = capture.moments, capture.channel_moments
        if found is not None:
            moments = found.to(device) if moments is None else moments + found.to(device)
        if of_channels is not None:
            channels = of_channels.to(device) if channels is None else channels + of_channels.to(device)
        inputs += capture.inputs
    return moments, channels, inputs


def check_finite(context: StepContext, wait: bool) -> Verdict:
    """Whether every gradient and input of the step is finite; also note for every layer whether its inputs can be squared.

    NaN or inf in an input always reaches the layer's gradient or the sums of inputs, the last rows of its second moment.
    Where those are finite and a square is not, inputs were finite, but are too large for the second moment, whose other
    entries are bounded by the squares (Cauchy-Schwarz).
    """
    given = () if context.gradients_checked else context.parameters
    read: list[Tensor] = [parameter.grad for parameter in given if parameter.grad is not None]
    if _are_all_finite(context, read):
        return Verdict(True, wait)
    flags = [] if wait else _flags_of_moments(context.layers)
    for each in context.layers:
        if each.moments is not None and not flags:
            read.append(each.moments[..., -1, :])
        if each.channels is not None:
            read += [each.channels[0], each.channels[2]]
        read += [torch.linalg.vector_norm(x, math.inf) for x in each.inputs if x.numel()]
    read += context.flags
    ok: Tensor | bool | None = known_finite(read)
    if ok is not None:
        pass
    elif all(tensor.is_cpu for tensor in read):
        ok = multi_tensor.all_finite(read)
    else:
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensor in read:
            by_device.setdefault(tensor.device, []).append(tensor)
        found = [multi_tensor.all_finite(tensors).to(read[0].device) for tensors in by_device.values()]
        found += [sums.all().to(read[0].device) for _, sums, _ in flags]
        ok = found[0] if len(found) == 1 else torch.stack(found).all()
    verdict = Verdict(ok, wait)
    if flags:
        for members, _, squares in flags:
            for each, finite in zip(members, squares.unbind(), strict=True):
                each.squarable = finite
    else:
        _note_squarable(context.layers, verdict.known)
    return verdict


def _are_all_finite(context: StepContext, gradients: list[Tensor]) -> bool:
    """Whether one pass on the CPU finds every number finite that the step reads, squares too: the usual case."""
    if any(each.inputs or each.channels is not None for each in context.layers):
        return False
    moments = [each.moments for each in context.layers if each.moments is not None]
    once = [found[:1] if found.stride(0) == 0 else found for found in moments]  # groups of one input have one memory
    read = [*gradients, *once, *context.flags]
    return bool(read) and read[0].is_cpu and known_finite(read) is True


def _flags_of_moments(layers: list[LayerContext]) -> list[tuple[list[LayerContext], Tensor, Tensor]]:
    """For each accelerator, the layers that gathered moments, and whether their sums and their squares are finite,
    ``[layers]``.

    Empty where layers gathered anything else, and on CPUs, where both are read in passes that are made anyway.
    """
    gathered = [each for each in layers if each.moments is not None]
    if any(each.inputs or each.channels is not None for each in layers):
        return []
    by_device: dict[torch.device, list[LayerContext]] = {}
    for each in gathered:
        by_device.setdefault(each.layer.weight.device, []).append(each)
    if any(device.type == "cpu" for device in by_device):
        return []
    found = []
    for members in by_device.values():
        sums, squares = multi_tensor.moment_flags([x.moments for x in members if x.moments is not None]).unbind()
        found.append((members, sums, squares))
    return found


def _note_squarable(layers: list[LayerContext], read: bool) -> None:
    """Set :attr:`LayerContext.squarable`, in a few calls per device; where the host may ``read`` the findings, only if one of
    them is false."""
    by_device: dict[torch.device, list[tuple[LayerContext, Tensor]]] = {}
    for each in layers:
        squares = [_squares(x, each.layer) for x in each.inputs]
        if each.moments is not None:
            squares.append(each.moments.diagonal(dim1=-2, dim2=-1))
        if each.channels is not None:
            squares.append(each.channels[1])
        for square in squares:
            by_device.setdefault(square.device, []).append((each, square))
    for found in by_device.values():
        largest = torch.stack(torch._foreach_norm([square for _, square in found], math.inf)).isfinite()
        if read and bool(largest.all()):
            continue
        for (each, _), finite in zip(found, largest.unbind(), strict=True):
            each.squarable = finite if each.squarable is None else each.squarable & finite


def _squares(x: Tensor, layer: Layer) -> Tensor:
    """The sum of squares of every input feature, or of every channel for a convolution."""
    feature = x.dim() - (3 if layer.is_convolution else 1)
    others = [dim for dim in range(x.dim()) if dim != feature]
    return torch.linalg.vector_norm(x, dim=others, dtype=statistics_dtype(x.dtype)).square() if others else x.square()


def has_statistics(state: dict[str, Any] | None, layer: Layer, config: Config) -> bool:
    """Whether a layer's state holds the statistics that its settings work with, so that it can wait for the next refresh."""
    needed = "factor" if config.factored else "second_moment" if config.keeps_second_moment else "mean"
    kept = None if state is None else state.get(needed)
    return kept is not None and (needed == "mean" or kept.shape[1] == moment_blocks(layer, config))


def moment_blocks(layer: Layer, config: Config) -> int:
    """The diagonal blocks in which a layer's second moment is gathered: those of the factor that is made of it."""
    return layer.input_blocks(config.block_size) if config.factored else 1


def gathered_moments(layer: Layer, config: Config) -> int:
    """The number of diagonal blocks that a backward pass gathers, over all groups. A packed in-projection counts one
    matrix: in self-attention the query, key and value projections share its moment."""
    return moment_blocks(layer, config) * (1 if layer.packed else layer.groups)
