"""The ops ``lnb_kernels::multi_tensor_*``: schemas, fakes and dispatch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _backend
from lnb_kernels._checks import DTYPES, number, writable
from lnb_kernels._library import define_in_place
from lnb_kernels._writes import require_one_kind, require_writable
from lnb_kernels.multi_tensor import checks, reference
from lnb_kernels.scaling import sum_dtype


def _define(
    schema: str,
    fake: Callable[..., Any],
    *,
    writes: int,
    cuda: bool = True,
    native: bool = True,
    triton: bool = False,
) -> Callable[..., Any]:
    """Register ``lnb_kernels::multi_tensor_<schema>`` and its routes; it writes to its first ``writes`` lists of tensors.

    With ``cuda`` there is a CUDA kernel, with ``native`` one for CPUs, with ``triton`` one for GPUs without the CUDA module.
    """
    name = "multi_tensor_" + schema.partition("(")[0]
    short = name.removeprefix("multi_tensor_")
    _backend.register(
        name,
        _by_reference(getattr(reference, short), re.findall(r"Tensor[^ ]*\[\] (\w+)", schema), writes),
        triton=f"lnb_kernels.multi_tensor.triton_kernel:{short}" if triton else None,
        native=f"lnb_kernels.multi_tensor.native_kernel:{short}" if native else None,
        native_cuda=f"lnb_kernels.multi_tensor.cuda_kernel:{short}" if cuda else None,
        native_dtypes=frozenset(DTYPES),
    )

    def kernel(tensors: Sequence[Tensor], *args: Any) -> Any:
        return _backend.call(name, tensors[0], tensors, *args)

    return define_in_place("multi_tensor_" + schema, kernel, fake, writes)


def _by_reference(function: Callable[..., Any], lists: Sequence[str], writes: int) -> Callable[..., Any]:
    """The reference, which refuses what the kernels refuse."""

    @functools.wraps(function)
    def checked(*args: Any) -> Any:
        require_writable(dict(zip(lists, args, strict=False)), lists[:writes])
        return function(*args)

    return checked


def _dot_like(xs: Sequence[Tensor], ys: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:
    size = len(xs) if layers is None else max(layers) + 1
    return xs[0].new_empty(size, dtype=sum_dtype(xs[0].device))


_all_finite = _define(
    "all_finite(Tensor[] tensors) -> Tensor", lambda tensors: tensors[0].new_empty((), dtype=torch.bool), writes=0
)
_moment_flags = _define(
    "moment_flags(Tensor[] moments) -> Tensor",
    lambda moments: moments[0].new_empty((2, len(moments)), dtype=torch.bool),
    writes=0,
    native=False,
    triton=True,
)
_ema_combined = _define(
    "ema_combined_(Tensor(a!)[] averages, Tensor(b!)[] out, Tensor[] values, float beta, Tensor shares, float take, "
    "Tensor? ok) -> ()",
    lambda averages, out, values, beta, shares, take, ok: None,
    writes=2,
)
_dot = _define("dot(Tensor[] xs, Tensor[] ys, int[]? layers=None) -> Tensor", _dot_like, writes=0)
_squared_row_norms = _define(
    "squared_row_norms(Tensor[] tensors, int[] rows) -> Tensor",
    lambda tensors, rows: tensors[0].new_empty(sum(rows), dtype=sum_dtype(tensors[0].device)),
    writes=0,
    cuda=False,
)
_apply = _define(
    "apply_(Tensor(a!)[] params, Tensor[] directions, Tensor scales, float lr, Tensor? lr_tensor, "
    "float weight_decay, Tensor? weight_decay_tensor, Tensor? ok) -> ()",
    lambda params, directions, scales, lr, lr_tensor, weight_decay, weight_decay_tensor, ok: None,
    writes=1,
)
_apply_master = _define(
    "apply_master_(Tensor(a!)[] masters, Tensor(b!)[] params, Tensor[] directions, Tensor scales, float lr, "
    "Tensor? lr_tensor, float weight_decay, Tensor? weight_decay_tensor, Tensor? ok) -> ()",
    lambda masters, params, directions, scales, lr, lr_tensor, weight_decay, weight_decay_tensor, ok: None,
    writes=2,
)


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether no entry of any tensor is NaN or infinite.

    Args:
        tensors: floating tensors of any shapes and dtypes, on one device.

    Returns:
        A bool tensor ``[]`` on that device (the CPU for an empty list, which is finite). The host does not wait for it.

    Raises:
        TypeError: not a list of dense floating tensors.
        ValueError: more than one device.
    """
    checks.tensors("multi_tensor.all_finite", "tensors", tensors)
    if not tensors:
        return torch.ones((), dtype=torch.bool)
    finite: Tensor = _all_finite(tensors)
    return finite


def moment_flags(moments: Sequence[Tensor]) -> Tensor:
    """What can be used of second moments with a column of ones, as :func:`lnb_kernels.second_moment` makes them.

    Args:
        moments: floating tensors ``[..., n, n]``, on one device; of every matrix the last row is ``sum [x 1]``.

    Returns:
        Bool ``[2, moments]`` on that device: whether the sums of the inputs are finite, and whether their squares are, the
        diagonal. The host does not wait for it.

    Raises:
        TypeError: not a list of dense floating tensors.
        ValueError: it is empty or of more than one device, or a moment is not square.
    """
    op = "multi_tensor.moment_flags"
    checks.tensors(op, "moments", moments)
    if not moments:
        raise ValueError(f"{op}: moments is empty; at least one is needed")
    for i, moment in enumerate(moments):
        if moment.dim() < 2 or moment.shape[-1] != moment.shape[-2] or moment.shape[-1] == 0:
            raise ValueError(f"{op}: moments[{i}] has shape {tuple(moment.shape)}; allowed is [..., n, n]")
    flags: Tensor = _moment_flags(moments)
    return flags


def ema_combined_(
    averages: Sequence[Tensor],
    values: Sequence[Tensor],
    beta: float,
    shares: Tensor,
    take: float,
    ok: Tensor | None = None,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Moving averages, in place, ``average <- beta average + (1 - beta) value``; and ``share average + take value`` of each.

    Both are made in one pass, the second of the new average.

    With ``share = 1 / (1 - beta^t)`` and ``take = 0`` that is the average of ``t`` values, corrected for its start at zero;
    with ``share = beta / (1 - beta^t)`` and ``take = 1 - beta`` Nesterov's look-ahead.

    Args:
        averages: tensors to update; no two may share memory.
        values: as many tensors of the same shapes, of any dtypes. Arithmetic is in float32, or float64 where one of the
            pair is float64.
        beta: share of the old average, in [0, 1].
        shares: ``[n]``, one factor per average, on the same device.
        take: finite factor of the values. Where it is 0 they count through the averages only.
        ok: bool tensor ``[]`` on the same device. Where it is False no average changes, and the old ones are combined; the host
            does not wait for it.
        out: tensors of the averages' shapes and dtypes to write to; None for new ones.

    Returns:
        ``out``, or ``n`` new tensors like the averages.

    Raises:
        TypeError: not lists of dense floating tensors, or a tensor of ``out`` has another dtype than its average.
        ValueError: lengths, shapes or devices do not fit, written tensors share memory, ``beta`` is outside [0, 1], or
            ``take`` is not finite.
        RuntimeError: a written tensor requires grad while autograd records.
    """
    op = "multi_tensor.ema_combined_"
    if out is None:
        _check_ema(op, averages, values, ok)
    else:
        _check_ema(op, averages, values, ok, out=out)
        writable(op, "out", out)
        for i, (average, target) in enumerate(zip(averages, out, strict=True)):
            if target.dtype != average.dtype:
                raise TypeError(f"{op}: out[{i}] has dtype {target.dtype}; allowed is averages[{i}]'s, {average.dtype}")
    beta = checks.share(op, "beta", beta)
    checks.factors(op, "shares", shares, "averages", averages)
    take = number(op, "take", take)
    if out is None:
        out = list(map(torch.empty_like, averages))
    require_one_kind(op, {"averages": averages, "out": out}, values=values, shares=shares, ok=ok)
    if averages:
        _ema_combined(averages, out, values, beta, shares, take, ok)
    return list(out)


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:
    """Dot products ``sum(x * y)`` of pairs of tensors, or of all pairs of a layer, the same bits in every run.

    Args:
        xs: tensors of any shapes and dtypes, on one device.
        ys: as many tensors of the same shapes.
        layers: None, or one int in ``[0, n)`` per pair: the layer that its product counts for. ``[0] * n`` gives that of the
            whole model.

    Returns:
        ``[n]``, with ``layers`` ``[max(layers) + 1]``, in float64 (float32 on devices without it), where no product of
        float32 entries overflows or vanishes. Not differentiable.

    Raises:
        TypeError: not lists of dense floating tensors.
        ValueError: lengths, shapes or devices do not fit.
    """
    checks.alike("multi_tensor.dot", xs=xs, ys=ys)
    checks.layers("multi_tensor.dot", layers, len(xs))
    if not xs:
        return torch.empty(0)
    products: Tensor = _dot(xs, ys, layers)
    return products


def squared_row_norms(tensors: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """Squared Euclidean norms of the rows of tensors that are read as matrices, the same bits in every run.

    Args:
        tensors: floating tensors of any shapes and dtypes, on one device.
        rows: for each tensor, into how many equal rows its entries are cut, in their order; divides their number.

    Returns:
        ``[sum(rows)]``, those of a tensor side by side, in float64 (float32 on devices without it), where no square of a
        float32 entry overflows or vanishes. Not differentiable.

    Raises:
        TypeError: not a list of dense floating tensors, or ``rows`` holds no ints.
        ValueError: more than one device, or ``rows`` does not fit.
    """
    op = "multi_tensor.squared_row_norms"
    checks.tensors(op, "tensors", tensors)
    checks.row_counts(op, rows, tensors)
    if not tensors:
        return torch.empty(0)
    norms: Tensor = _squared_row_norms(tensors, rows)
    return norms


def apply_(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    ok: Tensor | None = None,
) -> None:
    """The step with decoupled weight decay, in place: ``p <- p - lr (scale direction + weight_decay p)``.

    A scale of 0 switches its direction off: then it may hold NaN.

    Args:
        params: tensors to update; no two may share memory.
        directions: as many tensors of the same shapes.
        scales: ``[n]``, one factor per tensor, on the same device.
        lr: learning rate, a number or a tensor ``[]`` (read on its device: a captured CUDA graph follows its changes).
        weight_decay: likewise.
        ok: bool tensor ``[]`` on the same device. Nothing is written where it is False; the host does not wait for it.

    Raises:
        TypeError: not lists of dense floating tensors, or plain tensors are written beside others of a subclass that
            dispatches by itself, as fake ones.
        ValueError: lengths, shapes or devices do not fit, written tensors share memory, or a rate is not finite.
        RuntimeError: a written tensor requires grad while autograd records.
    """
    op = "multi_tensor.apply_"
    checks.alike(op, params=params, directions=directions)
    writable(op, "params", params)
    rates = _check_step(op, "params", params, scales, lr, weight_decay, ok)
    factors = {"scales": scales, "lr": lr, "weight_decay": weight_decay, "ok": ok}
    require_one_kind(op, {"params": params}, directions=directions, **factors)
    if params:
        _apply(params, directions, scales, *rates, ok)


def apply_master_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    ok: Tensor | None = None,
) -> None:
    """:func:`apply_` to float32 master weights; each parameter becomes its master, rounded to its own dtype.

    Steps too small for a 16-bit parameter then add up in its master.

    Args:
        masters: float32 tensors to update; no two may share memory.
        params: as many tensors of the same shapes, overwritten.
        directions: likewise, read.
        scales, lr, weight_decay, ok: as for :func:`apply_`.

    Raises:
        TypeError: not lists of dense floating tensors, or a master is not float32.
        ValueError: as :func:`apply_`.
        RuntimeError: likewise.
    """
    op = "multi_tensor.apply_master_"
    checks.alike(op, masters=masters, params=params, directions=directions)
    for i, master in enumerate(masters):
        if master.dtype != torch.float32:
            raise TypeError(f"{op}: masters[{i}] has dtype {master.dtype}; allowed is float32")
    writable(op, "masters", masters)
    writable(op, "params", params)
    rates = _check_step(op, "masters", masters, scales, lr, weight_decay, ok)
    factors = {"scales": scales, "lr": lr, "weight_decay": weight_decay, "ok": ok}
    require_one_kind(op, {"masters": masters, "params": params}, directions=directions, **factors)
    if masters:
        _apply_master(masters, params, directions, scales, *rates, ok)


def _check_step(
    op: str,
    name: str,
    written: Sequence[Tensor],
    scales: Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    ok: Tensor | None,
) -> tuple[float, Tensor | None, float, Tensor | None]:
    """Check what the two forms of ``apply_`` share; returns the rates as the ops take them."""
    checks.flag(op, ok, written)
    checks.factors(op, "scales", scales, name, written)
    return (*checks.rate(op, "lr", lr, written), *checks.rate(op, "weight_decay", weight_decay, written))


def _check_ema(
    op: str, averages: Sequence[Tensor], values: Sequence[Tensor], ok: Tensor | None, **out: Sequence[Tensor]
) -> None:
    checks.alike(op, averages=averages, values=values, **out)
    writable(op, "averages", averages)
    checks.flag(op, ok, averages)
