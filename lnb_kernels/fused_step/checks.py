"""Argument checks of the two ops. They read metadata only, and run before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _checks
from lnb_kernels._writes import require_writable
from lnb_kernels.fused_step.layers import partial_count
from lnb_kernels.multi_tensor.checks import flag, share
from lnb_kernels.scaling import sum_dtype
from lnb_kernels.step_tables import StepSettings

PRECISIONS = ("tf32", "tf32x3", "bf16")
_AVERAGES = (torch.float32, torch.float64)
_GRADIENTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_DIRECTIONS = (torch.float32, torch.bfloat16, torch.float64)


def direct(
    op: str,
    columns: Mapping[str, Sequence[Tensor | None]],
    partials: Tensor,
    mixed_biases: Tensor,
    shares: Tensor,
    bias_shares: Tensor | None,
    decay: float,
    take: float,
    ok: Tensor | None,
    precision: str,
) -> None:
    """Raise what :func:`lnb_kernels.fused_step.direct_layers_` names."""
    _checks.lists_of_layers(op, **columns)
    share(op, "decay", decay)
    _checks.number(op, "take", take)
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision={precision!r} is not allowed; choose one of {', '.join(PRECISIONS)}")
    if not columns["momentum"]:
        return
    first = _checks.floating_tensor(f"{op}: layer 0", "momentum", columns["momentum"][0])
    for i, entries in enumerate(zip(*columns.values(), strict=True)):
        _layer(f"{op}: layer {i}", dict(zip(columns, entries, strict=True)), first)
    for name in ("directions", "gradients", "momentum"):
        _one_dtype(op, name, columns[name])
    rows = [tensor.shape[:-1].numel() for tensor in columns["momentum"] if tensor is not None]
    blocks = [tensor.shape[-3] for tensor in columns["inverses"] if tensor is not None]
    with_bias = any(tensor is not None for tensor in columns["means"])
    numbers = {
        "partials": (partials, (partial_count(rows, blocks),), "the sums of all layers"),
        "mixed_biases": (mixed_biases, (sum(rows),), "one entry per row of all layers"),
        "shares": (shares, (len(rows),), "one entry per layer"),
    }
    for name, (value, shape, meaning) in numbers.items():
        _numbers(op, name, value, shape, meaning, sum_dtype(first.device), first)
    _bias_shares(op, bias_shares, len(rows), with_bias, first)
    flag(op, ok, [first])
    written: dict[str, Sequence[Tensor | None] | Tensor | None] = {
        "directions": columns["directions"], "momentum": columns["momentum"], "partials": partials,
        "mixed_biases": mixed_biases,
    }  # fmt: skip
    others = {name: values for name, values in columns.items() if name not in written}
    _writes(op, written, {**others, "shares": shares, "bias_shares": bias_shares, "ok": ok})


def _layer(where: str, layer: Mapping[str, Tensor | None], first: Tensor) -> None:
    names = {"directions": _DIRECTIONS, "momentum": _AVERAGES, "gradients": _GRADIENTS}
    for name, dtypes in names.items():
        value = _checks.floating_tensor(where, name, layer[name])
        _dtype_in(where, name, value, dtypes)
        _checks.same_device(where, name, value, "the first momentum", first)
    momentum, inverse, root = layer["momentum"], layer["inverses"], layer["roots"]
    assert momentum is not None
    if momentum.dim() < 2 or momentum.numel() == 0:
        raise ValueError(f"{where}: momentum has shape {tuple(momentum.shape)}; allowed is [..., m, d] with entries")
    *lead, m, d = momentum.shape
    for name in ("directions", "gradients"):
        like = layer[name]
        assert like is not None
        _checks.shape_is(where, name, like, momentum.shape, "that of the momentum")
    for name, given, columns in (("inverses", inverse, d), ("roots", root, m)):
        value = _checks.floating_tensor(where, name, given)
        size = value.shape[-1] if value.dim() >= 3 else 0
        if size == 0 or columns % size or tuple(value.shape) != (*lead, columns // size, size, size):
            raise ValueError(
                f"{where}: {name} has shape {tuple(value.shape)}; allowed are blocks [..., {columns} / size, size, size] with "
                f"the leading dimensions {tuple(lead)} of the momentum"
            )
        _like_average(where, name, value, momentum, first)
    of_bias = {name: layer[name] for name in ("bias_gradients", "bias_momentum", "means")}
    missing = [name for name, value in of_bias.items() if value is None]
    if missing:
        if len(missing) < len(of_bias):
            raise ValueError(f"{where}: {', '.join(of_bias)} come together, but {missing[0]} is None")
        return
    for name, given in of_bias.items():
        value = _checks.floating_tensor(where, name, given)
        if name == "means":
            _checks.shape_is(where, name, value, (*lead, d), "one entry per column of the momentum")
        else:
            _entries(where, name, value, momentum.shape[:-1].numel())
        if name == "bias_gradients":
            gradient = layer["gradients"]
            assert gradient is not None
            _dtype_in(where, name, value, (gradient.dtype,))
            _checks.same_device(where, name, value, "the first momentum", first)
        else:
            _like_average(where, name, value, momentum, first)


def finish(
    op: str,
    written: Mapping[str, Tensor],
    biases: Mapping[str, Sequence[Tensor | None]],
    read: Mapping[str, Tensor],
    lists: Mapping[str, Sequence[Any]],
    norms: Tensor | None,
    bias_shares: Tensor | None,
    settings: StepSettings,
    ok: Tensor | None,
) -> None:
    """Raise what :func:`lnb_kernels.fused_step.finish_layers_` names."""
    _checks.lists_of_layers(op, **lists, **biases)
    if not isinstance(settings, StepSettings):
        raise TypeError(f"{op}: settings must be StepSettings, got {type(settings).__name__}")
    rows, blocks, places = lists["rows"], lists["column_blocks"], lists["step_places"]
    layers = len(rows)
    if not layers:
        return
    first = _checks.floating_tensor(op, "row_scales", written["row_scales"])
    steps = _checks.floating_tensor(op, "steps", read["steps"])
    for i in range(layers):
        where = f"{op}: layer {i}"
        for name, value in (("rows", rows[i]), ("column_blocks", blocks[i])):
            if _checks.count(where, name, value) == 0:
                raise ValueError(f"{where}: {name}=0 is not allowed; it must be at least 1")
        if _checks.count(where, "step_places", places[i]) >= steps.numel():
            raise ValueError(f"{where}: step_places={places[i]} is not allowed; there are {steps.numel()} steps")
        _checks.non_negative(where, "usual_norms", lists["usual_norms"][i])
        _rate(where, lists["rates"][i], first)
        _bias(where, {name: values[i] for name, values in biases.items()}, rows[i], first)
    _one_dtype(op, "bias_gradients", biases["bias_gradients"])
    wide = sum_dtype(first.device)
    everywhere = (sum(rows),), "one entry per row of all layers"
    own = (layers,), "one entry per layer"
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "row_scales": everywhere, "row_square": everywhere, "mixed_biases": everywhere,
        "partials": ((partial_count(rows, blocks),), "the sums of all layers"),
        "steps": (tuple(steps.shape[:1]), "one entry per count"), "sums": ((layers, 4), "four per layer"),
    }  # fmt: skip
    for name, value in {**written, **read, **({} if norms is None else {"norms": norms})}.items():
        shape, meaning = shapes.get(name, own)
        narrow = name in ("row_scales", "steps")
        _numbers(op, name, value, shape, meaning, torch.float32 if narrow else wide, first)
    _bias_shares(op, bias_shares, layers, any(x is not None for x in biases["bias_gradients"]), first)
    flag(op, ok, [first])
    named: dict[str, Sequence[Tensor | None] | Tensor | None] = {
        "bias_momentum": biases["bias_momentum"], "bias_directions": biases["bias_directions"], **written
    }  # fmt: skip
    rates = [rate if isinstance(rate, Tensor) else None for rate in lists["rates"]]
    others = {
        "bias_gradients": biases["bias_gradients"], "norms": norms, "rates": rates, "bias_shares": bias_shares, "ok": ok,
        **read,
    }  # fmt: skip
    _writes(op, named, others)


def _bias(where: str, bias: Mapping[str, Tensor | None], rows: int, first: Tensor) -> None:
    missing = [name for name, value in bias.items() if value is None]
    if missing and len(missing) < len(bias):
        raise ValueError(f"{where}: {', '.join(bias)} come together, but {missing[0]} is None")
    for name, given in () if missing else bias.items():
        value = _checks.floating_tensor(where, name, given)
        _entries(where, name, value, rows)
        _dtype_in(where, name, value, _GRADIENTS if name == "bias_gradients" else _AVERAGES)
        _checks.same_device(where, name, value, "row_scales", first)


def _rate(where: str, rate: object, first: Tensor) -> None:
    if isinstance(rate, Tensor):
        _checks.floating_tensor(where, "rates", rate)
        if rate.dim():
            raise ValueError(f"{where}: rates has shape {tuple(rate.shape)}; allowed is a number or a scalar tensor")
        _checks.same_device(where, "rates", rate, "row_scales", first)
    else:
        _checks.non_negative(where, "rates", rate)  # type: ignore[arg-type]


def _numbers(
    op: str, name: str, value: object, shape: Sequence[int], meaning: str, dtype: torch.dtype, first: Tensor
) -> None:
    tensor = _checks.floating_tensor(op, name, value)
    _checks.shape_is(op, name, tensor, shape, meaning)
    _dtype_in(op, name, tensor, (dtype,))
    _checks.same_device(op, name, tensor, "the first tensor", first)
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} is not contiguous; use .contiguous()")


def _bias_shares(op: str, shares: Tensor | None, layers: int, needed: bool, first: Tensor) -> None:
    if shares is not None:
        _numbers(op, "bias_shares", shares, (layers,), "one entry per layer", sum_dtype(first.device), first)
    elif needed:
        raise ValueError(f"{op}: bias_shares is None, but there are biases; pass [layers] shares")


def _entries(where: str, name: str, value: Tensor, rows: int) -> None:
    if value.numel() != rows:
        raise ValueError(f"{where}: {name} has shape {tuple(value.shape)}; allowed is one entry per row, {rows}")


def _dtype_in(where: str, name: str, value: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if value.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{where}: {name} is {value.dtype}; allowed is {allowed}")


def _like_average(where: str, name: str, value: Tensor, momentum: Tensor, first: Tensor) -> None:
    _dtype_in(where, name, value, (momentum.dtype,))
    _checks.same_device(where, name, value, "the first momentum", first)


def _one_dtype(op: str, name: str, values: Sequence[Tensor | None]) -> None:
    found = [value.dtype for value in values if value is not None]
    for i, dtype in enumerate(found):
        if dtype != found[0]:
            raise TypeError(f"{op}: {name}[{i}] is {dtype}, but {name}[0] is {found[0]}; use one dtype for all layers")


def _writes(op: str, written: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    for name, values in written.items():
        tensors = values if isinstance(values, (list, tuple)) else [values]
        _checks.writable(op, name, [tensor for tensor in tensors if tensor is not None])
    require_writable({**written, **read}, list(written))
