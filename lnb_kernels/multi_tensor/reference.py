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
    return torch.stack(list(map(_as_wide, largest))).isfinite().all()


def _as_wide(norm: Tensor) -> Tensor:
    """The norm of a tensor of 16 bits as float32: lists of one dtype are stacked in one launch."""
    return norm if norm.dtype in (torch.float32, torch.float64) else norm.float()


def moment_flags(moments: Sequence[Tensor]) -> Tensor:
    """Whether the last rows (sums of inputs) and the diagonals of each moment ``[..., n, n]`` are finite, ``[2, moments]``."""
    parts = [moment[..., -1, :] for moment in moments], [moment.diagonal(dim1=-2, dim2=-1) for moment in moments]
    return torch.stack([_each_finite(of_kind) for of_kind in parts])


def _each_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all entries of each are, ``[n]``: those of one shape and dtype are asked together."""
    alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        alike.setdefault((tensor.shape, tensor.dtype), []).append(i)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        flags = torch.stack([tensors[i] for i in places]).flatten(1).isfinite().all(1)
        found.update(zip(places, flags.unbind(), strict=True))
    return torch.stack([found[i] for i in range(len(tensors))])


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
    """``average <- beta average + (1 - beta) value`` where ``ok``, then ``output <- share average + take value``.

    Where ``take`` is 0 the values count through the averages only.

    All memory that this needs is taken before the first write.
    """
    new = _averaged(averages, values, beta, ok)
    wide = _wide(new, values)
    combined = [average * share.to(average.dtype) for average, share in zip(wide, shares.unbind(), strict=True)]
    if take != 0:
        torch._foreach_add_(combined, _wide(values, averages), alpha=take)
    write(averages, new)
    write(outputs, combined)


@torch.no_grad()
def dot(xs: Sequence[Tensor], ys: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:
    """``sum(x * y)`` of each pair, ``[n]``; with ``layers``, of all pairs of each layer, ``[max(layers) + 1]``."""
    if not xs:
        return torch.empty(0)
    dtype = sum_dtype(xs[0].device)
    # Elsewhere than on a CPU one launch for all is worth the rounding of a root that is squared again.
    squares = not xs[0].is_cpu and all(x is y for x, y in zip(xs, ys, strict=True))
    if squares and not any(map(Tensor.is_neg, xs)):
        sums = torch.stack(torch._foreach_norm(list(xs), 2, dtype)).square()
    else:
        products = [x.to(dtype) * y.to(dtype) for x, y in zip(xs, ys, strict=True)]
        sums = torch.stack([product.sum() for product in products])
    if layers is None:
        return sums
    members: list[list[Tensor]] = [[] for _ in range(max(layers) + 1)]
    for layer, own in zip(layers, sums.unbind(), strict=True):
        members[layer].append(own)
    return torch.stack([torch.stack(own).sum() if own else sums.new_zeros(()) for own in members])


@torch.no_grad()
def squared_row_norms(tensors: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """``sum(row * row)`` of the ``rows[i]`` equal rows of every tensor, one after the other, ``[sum(rows)]``."""
    if not tensors:
        return torch.empty(0)
    wide = sum_dtype(tensors[0].device)
    cut = [x.to(wide).reshape(n, x.numel() // max(1, n)) for x, n in zip(tensors, rows, strict=True)]
    return torch.cat([matrix.square().sum(1) for matrix in cut])


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

    Where ``lr scale`` is 0 the direction does not count, even if it is NaN.
    """
    if params:
        write(params, _stepped(params, directions, scales, lr, lr_tensor, weight_decay, weight_decay_tensor, ok))


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
    new = _stepped(masters, directions, scales, lr, lr_tensor, weight_decay, weight_decay_tensor, ok)
    rounded = _where(ok, new, params)
    write(masters, new)
    write(params, rounded)


def write(targets: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """Copy ``new`` into ``targets``."""
    if any(map(Tensor.is_neg, targets)):  # PyTorch's operations on lists write to no negated view
        for target, value in zip(targets, new, strict=True):
            target.copy_(value.to(target.dtype))  # PyTorch forgets the sign where it converts
    else:
        torch._foreach_copy_(list(targets), list(new))


def _averaged(averages: Sequence[Tensor], values: Sequence[Tensor], beta: float, ok: Tensor | None) -> list[Tensor]:
    """``beta average + (1 - beta) value`` where ``ok``, else the average, in the dtypes of the averages."""
    new = torch._foreach_mul(_wide(averages, values), beta)
    torch._foreach_add_(new, _wide(values, averages), alpha=1.0 - beta)
    return _where(ok, new, averages)


def _stepped(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    weight_decay_tensor: Tensor | None,
    ok: Tensor | None,
) -> list[Tensor]:
    """What :func:`apply_` writes, in the dtypes of the parameters."""
    rate = lr if lr_tensor is None else lr_tensor
    decay = weight_decay if weight_decay_tensor is None else weight_decay_tensor
    wide = _wide(params, directions)
    still = (scales * rate == 0).unbind()
    steps = [
        torch.where(off, 0.0, d * s.to(d.dtype))
        for d, s, off in zip(_wide(directions, params), scales.unbind(), still, strict=True)
    ]
    new = [p - rate * (step + decay * p) for p, step in zip(wide, steps, strict=True)]
    return _where(ok, new, params)


def _wide(tensors: Sequence[Tensor], partners: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor in the dtype of its pair's arithmetic."""
    return [
        tensor.to(torch.promote_types(torch.promote_types(tensor.dtype, partner.dtype), torch.float32))
        for tensor, partner in zip(tensors, partners, strict=True)
    ]


def _where(ok: Tensor | None, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """``new`` in the dtypes of ``old``, where ``ok``: selected, not multiplied, so that a NaN in ``new`` cannot leak."""
    rounded = [n.to(o.dtype) for n, o in zip(new, old, strict=True)]
    return rounded if ok is None else [torch.where(ok, n, o) for n, o in zip(rounded, old, strict=True)]
