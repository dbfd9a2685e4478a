"""What each multi-tensor op computes, in plain PyTorch: any dtype, layout and device, no host synchronisation.

Arithmetic is in float32, or float64 where a float64 tensor takes part; what is written is rounded once, at the end. Sums over
entries are in float64 where the device has it. Nothing is differentiated, by autograd either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels.scaling import sum_dtype


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether no entry is NaN or infinite: the largest absolute value of each tensor is finite."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.ones((), dtype=torch.bool, device=tensors[0].device if tensors else None)
    largest = torch._foreach_norm(filled, math.inf)
    return torch.stack([norm.isfinite() for norm in largest]).all()


@torch.no_grad()
def ema_(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float, ok: Tensor | None) -> None:
    """``average <- beta average + (1 - beta) value`` where ``ok``."""
    if not averages:
        return
    new = torch._foreach_mul(_wide(averages, values), beta)
    torch._foreach_add_(new, _wide(values, averages), alpha=1.0 - beta)
    _write(averages, new, ok)


@torch.no_grad()
def ema_squared_norms_(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float, ok: Tensor | None) -> Tensor:
    """:func:`ema_`, then ``dot(averages, averages)``."""
    ema_(averages, values, beta, ok)
    return dot(averages, averages)


@torch.no_grad()
def ema_combined_(
    averages: Sequence[Tensor],
    outputs: Sequence[Tensor],
    values: Sequence[Tensor],
    beta: float,
    shares: Tensor,
    take: float,
    ok: Tensor | None,
) -> None:
    """:func:`ema_`, then ``output <- share average + take value``, without the second term where ``take`` is 0."""
    ema_(averages, values, beta, ok)
    wide = _wide(averages, values)
    combined = [average * share.to(average.dtype) for average, share in zip(wide, shares.unbind(), strict=True)]
    if take != 0:
        torch._foreach_add_(combined, _wide(values, averages), alpha=take)
    _write(outputs, combined, None)


@torch.no_grad()
def dot(xs: Sequence[Tensor], ys: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:
    """``sum(x * y)`` of each pair, ``[n]``; with ``layers``, of all pairs of each layer, ``[max(layers) + 1]``."""
    if not xs:
        return torch.empty(0)
    dtype = sum_dtype(xs[0].device)
    products = [x.to(dtype) * y.to(dtype) for x, y in zip(xs, ys, strict=True)]
    sums = torch.stack([product.sum() for product in products])
    if layers is None:
        return sums
    members: list[list[Tensor]] = [[] for _ in range(max(layers) + 1)]
    for layer, own in zip(layers, sums.unbind(), strict=True):
        members[layer].append(own)
    return torch.stack([torch.stack(own).sum() if own else sums.new_zeros(()) for own in members])


@torch.no_grad()
def apply_(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    weight_decay_tensor: Tensor | None,
    ok: Tensor | None,
) -> None:
    """``p <- p - lr (scale direction + weight_decay p)`` where ``ok``; a rate's tensor stands in for its number.

    Where ``lr scale`` is 0 the direction does not count, be it NaN.
    """
    if not params:
        return
    rate = lr if lr_tensor is None else lr_tensor
    decay = weight_decay if weight_decay_tensor is None else weight_decay_tensor
    wide = _wide(params, directions)
    still = (scales * rate == 0).unbind()
    steps = [
        torch.where(off, 0.0, d * s.to(d.dtype))
        for d, s, off in zip(_wide(directions, params), scales.unbind(), still, strict=True)
    ]
    new = [p - rate * (step + decay * p) for p, step in zip(wide, steps, strict=True)]
    _write(params, new, ok)


@torch.no_grad()
def apply_master_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    weight_decay_tensor: Tensor | None,
    ok: Tensor | None,
) -> None:
    """:func:`apply_` to the masters, and where ``ok`` each parameter becomes its master, rounded."""
    apply_(masters, directions, scales, lr, lr_tensor, weight_decay, weight_decay_tensor, ok)
    _write(params, masters, ok)


def _wide(tensors: Sequence[Tensor], partners: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor in the dtype of its pair's arithmetic."""
    return [
        tensor.to(torch.promote_types(torch.promote_types(tensor.dtype, partner.dtype), torch.float32))
        for tensor, partner in zip(tensors, partners, strict=True)
    ]


def _write(targets: Sequence[Tensor], new: Sequence[Tensor], ok: Tensor | None) -> None:
    """Copy ``new`` into ``targets`` where ``ok``: selected, not multiplied, so that a NaN in ``new`` cannot leak."""
    if ok is not None:
        new = [torch.where(ok, n.to(t.dtype), t) for t, n in zip(targets, new, strict=True)]
    torch._foreach_copy_(list(targets), list(new))
