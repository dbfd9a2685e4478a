"""What ``fused_step.apply_`` computes, in plain PyTorch: any dtype, layout and device, no host synchronisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lnb_kernels._writes import require_writable
from lnb_kernels.fused_step.apply_entries import WRITTEN, Entry, Numbers, Rate
from lnb_kernels.multi_tensor.reference import write
from lnb_kernels.scaling import largest_squarable


@torch.no_grad()
def apply_(lists: Mapping[str, Sequence[Tensor]], entries: Sequence[Entry], numbers: Numbers) -> None:
    """Move the entries, in whatever lists they stand. All memory that this needs is taken before the first write."""
    require_writable(lists, WRITTEN)
    targets: list[Tensor] = []
    values: list[Tensor] = []

    def put(target: Tensor, value: Tensor) -> None:
        rounded = value.to(target.dtype)
        # Selected, not multiplied, so that a NaN cannot leak.
        values.append(rounded if numbers.ok is None else torch.where(numbers.ok, rounded, target))
        targets.append(target)

    for entry in entries:
        if entry.average is None or entry.square is None:
            wide = _promoted(entry.theta, entry.y)
            direction = _scaled(entry, wide)
        else:
            wide = _promoted(entry.theta, entry.average)
            average, square, direction, found = _by_adam(entry, entry.average, entry.square, numbers)
            put(entry.average, average)
            put(entry.square, square)
            if numbers.finite is not None:
                flag = numbers.finite[entry.number]
                put(flag, flag & found)
        theta = entry.theta.to(wide)
        step, shrink = (value.to(wide) for value in _lengths(entry, numbers))
        fresh = theta - (torch.where(step == 0, 0.0, step * direction.to(wide)) + shrink * theta)
        put(entry.theta, fresh)
        if entry.master is not None:
            put(entry.param, fresh)
    write(targets, values)


def _promoted(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in {tensor.dtype for tensor in tensors} else torch.float32


def _scaled(entry: Entry, wide: torch.dtype) -> Tensor:
    """The direction of a layer's parameter, its rows multiplied by their scales."""
    direction = entry.y.to(wide).reshape(entry.param.shape)
    if entry.row_scales is None:
        return direction
    rows = entry.row_scales.to(wide).view(-1, *[1] * (direction.dim() - 1))
    return torch.where(rows == 0, 0.0, rows * direction)


def _by_adam(entry: Entry, average: Tensor, square: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New ``m`` and ``v``, the direction without its entries that are not finite, and whether there are none, ``[]``."""
    assert numbers.shares is not None
    assert numbers.corrections is not None
    beta, take, b_others, epsilon = numbers.rule
    share, correction = (values[entry.number].to(average.dtype) for values in (numbers.shares, numbers.corrections))
    gradient = entry.y.to(average.dtype)
    fresh = beta * average + (1 - beta) * gradient
    ahead = share * fresh
    if take != 0:
        ahead = ahead + take * gradient
    most = largest_squarable(average.dtype)
    mean_square = torch.lerp(square, gradient.clamp(-most, most).square(), 1 - b_others)
    direction = ahead.clamp(-most, most) / ((mean_square / correction).sqrt() + epsilon)
    finite = direction.isfinite()
    return fresh, mean_square, torch.where(finite, direction, 0.0), finite.all()


def _lengths(entry: Entry, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """What the direction is multiplied by, and what weight decay and shortening take off the parameter."""
    lr, decay = (_value(rates[entry.group]) for rates in (numbers.lr, numbers.weight_decay))
    scale = numbers.scales[entry.place]
    one = torch.ones_like(scale)
    shrink = one * lr * decay
    if entry.row_scales is not None and numbers.shorter is not None:
        factor = numbers.shorter[entry.place]
        shrink = (1 - factor) + factor * shrink
    return scale * lr, shrink


def _value(rate: Rate) -> float | Tensor:
    number, tensor = rate
    return number if tensor is None else tensor
