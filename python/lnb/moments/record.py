"""One layer's input moments: what they are of, and the tensors."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SOURCES = ("data", "training")
DTYPES = (torch.float32, torch.float64)


class MissingMoment(KeyError, ValueError):
    """A layer has no moment; the message says which, why, and what to do."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class LayerInfo:
    """What a layer's moments are of.

    A layer's weight is a matrix ``[groups, d_out / groups, d_in]``; every group has inputs of its own. Its second moment is in
    ``blocks`` diagonal blocks of ``size`` inputs each.

    Attributes:
        name: of the layer: its path in the model, or that of its weight for a packed in-projection.
        kind: what the layer is, in words.
        parameter: the name of its weight in the model.
        bias: the name of its bias; None without one.
        groups, blocks, size: as above, ``blocks * size = d_in``.
        d_out: outputs of all groups.
        dtype: of the tensors, float32 or float64.
        source: ``"data"``, sums over the samples of a data set, or ``"training"``, LNB's average over past steps.
        decay: of that average per refresh; None where it is unknown or there is none.
        steps: how many refreshes it counts; None for data.
    """

    name: str
    kind: str
    parameter: str
    bias: str | None
    groups: int
    blocks: int
    size: int
    d_out: int
    dtype: torch.dtype
    source: str
    decay: float | None = None
    steps: int | None = None

    @property
    def d_in(self) -> int:
        """Inputs of one neuron."""
        return self.blocks * self.size

    @property
    def with_bias(self) -> bool:
        """Whether the layer adds a bias."""
        return self.bias is not None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the layer's tensors, by name, in the order in which files have them."""
        square = (self.groups, self.blocks, self.size, self.size)
        return {"second_moment": square, "mean": (self.groups, self.d_in), "count": (self.groups,)}

    @property
    def place(self) -> tuple[object, ...]:
        """What must agree for two moments to be of the same layer, in the same blocks."""
        return self.parameter, self.groups, self.blocks, self.size, self.d_out

    def matrix(self, weight: Tensor) -> Tensor:
        """A weight of this layer as ``[groups, d_out / groups, d_in]``.

        Raises:
            TypeError: ``weight`` is no floating tensor.
            ValueError: it is of another layer, by its shape.
        """
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise TypeError(f"weight={reprlib.repr(weight)} must be a real floating-point tensor")
        if weight.dim() < 2 or weight.shape[0] != self.d_out or math.prod(weight.shape[1:]) != self.d_in:
            raise ValueError(
                f"weight of shape {tuple(weight.shape)}: the moment of layer {self.name!r} is for {self.d_out} "
                f"outputs of "
                f"{self.d_in} inputs each; it was taken of another model or layer: gather or export those of this one"
            )
        return weight.detach().reshape(self.groups, self.d_out // self.groups, self.d_in)


@dataclass(frozen=True, eq=False)
class LayerMoment:
    """The moments of one layer's inputs.

    Attributes:
        info: what they are of.
        second_moment: ``E[x x']`` in diagonal blocks, ``[groups, blocks, size, size]``.
        mean: ``E[x]``, ``[groups, d_in]``.
        count: how many samples the averages are of, ``[groups]`` float64: exact for data; for a training the number that an
            unweighted average of the same certainty would have. NaN where it is unknown.
    """

    info: LayerInfo
    second_moment: Tensor
    mean: Tensor
    count: Tensor

    def __post_init__(self) -> None:
        for name, shape in self.info.shapes.items():
            value: Tensor = getattr(self, name)
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"layer {self.info.name!r}: {name} has shape {tuple(value.shape)}, it must be {shape}; the "
                    f"moments are damaged "
                    f"or of another layer: make them anew"
                )

    @property
    def is_full(self) -> bool:
        """Whether all pairs of inputs are there, and not only those within a block."""
        return self.info.blocks == 1

    def covariance(self) -> Tensor:
        """``E[x x'] - E[x] E[x]'`` in the same blocks, ``[groups, blocks, size, size]``."""
        mean = self.mean.unflatten(-1, (self.info.blocks, self.info.size))
        return torch.addcmul(self.second_moment, mean.unsqueeze(-1), mean.unsqueeze(-2), value=-1)

    def check(self, remedy: str) -> LayerMoment:
        """Require that this can be the moment of some inputs.

        Args:
            remedy: ends the message.

        Raises:
            ValueError: a number is NaN or infinite, a mean square is negative, or no sample was counted.
        """
        name = self.info.name
        for what, value in (("second_moment", self.second_moment), ("mean", self.mean)):
            if not is_finite(value):
                raise ValueError(f"layer {name!r}: {what} holds NaN or inf; {remedy}")
        if value_below(self.second_moment.diagonal(dim1=-2, dim2=-1), 0.0):
            raise ValueError(f"layer {name!r}: second_moment has a negative mean square; {remedy}")
        if bool((self.count <= 0).any()) or bool(self.count.isinf().any()):
            raise ValueError(
                f"layer {name!r}: count is {self.count.tolist()}, it must be of at least one sample; {remedy}"
            )
        return self


def require_moment(moment: object) -> LayerMoment:
    """Require the moment of a layer, of finite numbers.

    Raises:
        TypeError: it is something else.
        ValueError: it holds NaN or inf, a negative mean square, or no samples.
    """
    if not isinstance(moment, LayerMoment):
        raise TypeError(f"moment must be a LayerMoment, as moments[name] is, not {type(moment).__name__}")
    return moment.check("gather or export it anew; nothing was computed")


def is_finite(value: Tensor) -> bool:
    """Whether all numbers are; no temporary of the size of ``value`` is made."""
    if value.numel() == 0:
        return True
    low, high = torch.aminmax(value)  # NaN if one is
    return math.isfinite(float(low)) and math.isfinite(float(high))


def value_below(value: Tensor, limit: float) -> bool:
    """Whether any number is."""
    return value.numel() > 0 and bool(value.min() < limit)


def combined(moments: Sequence[LayerMoment]) -> LayerMoment:
    """The moment of all samples of several moments of one layer: averages weighted by counts, and the sum of the counts.

    The sums run in float64, so that counts are exact and an average rounds once.

    Raises:
        ValueError: they are of other layers or in other blocks, or a count is unknown.
    """
    first = moments[0]
    for other in moments[1:]:
        if other.info.place != first.info.place:
            raise ValueError(
                f"layer {first.info.name!r}: moments to merge are of {_describe(first.info)} and of "
                f"{_describe(other.info)}; "
                f"gather or export both of the same model with the same block_size"
            )
    for moment in moments:
        if bool(moment.count.isnan().any()):
            raise ValueError(
                f"layer {moment.info.name!r}: it is not known how many samples a moment is of, so that it cannot be "
                f"weighted; export "
                f"it from the optimizer itself, or from a state dict of this version"
            )
    total = torch.stack([moment.count for moment in moments]).sum(0)
    square = torch.zeros_like(first.second_moment, dtype=torch.float64)
    mean = torch.zeros_like(first.mean, dtype=torch.float64)
    for moment in moments:
        share = moment.count / total
        square += moment.second_moment.to(square) * share.view(-1, 1, 1, 1).to(square.device)
        mean += moment.mean.to(mean) * share.view(-1, 1).to(mean.device)
    dtype = first.info.dtype
    return LayerMoment(merged_info([moment.info for moment in moments]), square.to(dtype), mean.to(dtype), total)


def merged_info(infos: Sequence[LayerInfo]) -> LayerInfo:
    """What the combined moment describes: what its parts agree in."""
    first = infos[0]
    if len(infos) == 1:
        return first
    source = "data" if all(info.source == "data" for info in infos) else "training"
    return LayerInfo(
        first.name, first.kind, first.parameter, first.bias, first.groups, first.blocks, first.size, first.d_out, first.dtype,
        source,
    )  # fmt: skip


def _describe(info: LayerInfo) -> str:
    return (
        f"{info.parameter!r} with {info.groups} x {info.blocks} blocks of {info.size} inputs and {info.d_out} outputs"
    )
