"""Argument checks of ``fused_step.apply_``, and its arguments as the op takes them. Only metadata is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels._checks import floating_tensor, non_negative, number, same_device, writable
from lnb_kernels.fused_step.apply_arguments import AdamRule, Biases, Others, Weights
from lnb_kernels.multi_tensor import checks
from lnb_kernels.scaling import sum_dtype

_OP = "fused_step.apply_"
_STATISTICS = (torch.float32, torch.float64)


def checked(
    weights: Weights,
    biases: Biases,
    others: Others,
    scales: Tensor,
    lr: Sequence[float | Tensor],
    weight_decay: Sequence[float | Tensor],
    rule: AdamRule | None,
    shorter: Tensor | None,
    ok: Tensor | None,
) -> dict[str, Any]:
    """The op's arguments by their names, in its order.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`lnb_kernels.fused_step.apply_`.
    """
    _require_kind("weights", weights, Weights)
    _require_kind("biases", biases, Biases)
    _require_kind("others", others, Others)
    _require_directions("weights", weights)
    _require_row_scales(weights)
    _require_directions("biases", biases)
    checks.alike(
        _OP, **{f"others.{name}": getattr(others, name) for name in ("params", "gradients", "averages", "squares")}
    )
    _require_statistics(others)
    params = [*weights.params, *biases.params, *others.params]
    of_params: dict[str, Weights | Biases | Others] = {"weights": weights, "biases": biases, "others": others}
    lengths = {name: len(value.params) for name, value in of_params.items()}
    for name, value in of_params.items():
        if value.params:
            same_device(_OP, f"{name}.params[0]", value.params[0], "the first parameter", params[0])
    floating_tensor(_OP, "scales", scales)
    if scales.dim() != 1:
        raise ValueError(
            f"{_OP}: scales has shape {tuple(scales.shape)}, allowed is one per layer and other parameter, [n]"
        )
    _require_wide("scales", scales, params)
    if shorter is not None:
        floating_tensor(_OP, "shorter", shorter)
        if shorter.shape != scales.shape:
            raise ValueError(
                f"{_OP}: shorter has shape {tuple(shorter.shape)}, allowed is that of scales, {tuple(scales.shape)}"
            )
        _require_wide("shorter", shorter, params)
    rates = {name: _rates(name, values, params) for name, values in (("lr", lr), ("weight_decay", weight_decay))}
    if len(lr) != len(weight_decay):
        raise ValueError(
            f"{_OP}: weight_decay has {len(weight_decay)} entries and lr has {len(lr)}; allowed is as many"
        )
    places: list[int] = []
    groups: list[int] = []
    masters: list[Tensor] = []
    mastered: list[int] = []
    for name, value in of_params.items():
        of_scales = "places" if name == "others" else "layers"
        places += _indices(f"{name}.{of_scales}", getattr(value, of_scales), lengths[name], len(scales), "scales")
        given = [0] * lengths[name] if value.groups is None else value.groups
        groups += _indices(f"{name}.groups", given, lengths[name], len(lr), "lr")
        for master in _masters(name, value):
            mastered.append(-1 if master is None else len(masters))
            masters += [] if master is None else [master]
    checks.flag(_OP, ok, params)
    finite = _flags(others)
    written = (
        ("params", params), ("masters", masters), ("averages", list(others.averages)), ("squares", list(others.squares)),
    )  # fmt: skip
    for name, values in written:
        writable(_OP, name, values)
    return {
        **dict(written),
        "finite": finite,
        "directions": [*weights.directions, *biases.directions],
        "row_scales": list(weights.row_scales),
        "gradients": list(others.gradients),
        "mastered": mastered,
        "places": places,
        "groups": groups,
        "scales": scales,
        "shorter": shorter,
        **_factors(others),
        "lr": [value for value, _ in rates["lr"]],
        "lr_tensors": [tensor for _, tensor in rates["lr"]],
        "weight_decay": [value for value, _ in rates["weight_decay"]],
        "weight_decay_tensors": [tensor for _, tensor in rates["weight_decay"]],
        "rule": _rule(rule, others),
        "ok": ok,
    }


def _require_kind(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{_OP}: {name} must be a fused_step.{kind.__name__}, got {type(value).__name__}")


def _require_directions(name: str, layers: Weights | Biases) -> None:
    params, directions = layers.params, layers.directions
    checks.tensors(_OP, f"{name}.params", params)
    checks.tensors(_OP, f"{name}.directions", directions)
    if len(params) != len(directions):
        raise ValueError(
            f"{_OP}: {name}.directions has {len(directions)} tensors and {name}.params has {len(params)}; allowed is as many"
        )
    for i, (param, direction) in enumerate(zip(params, directions, strict=True)):
        rows = len(param) if param.dim() else 1
        cut = (rows, param.numel() // max(1, rows))
        if direction.shape != param.shape and (name == "biases" or tuple(direction.shape) != cut):
            also = "" if name == "biases" else f", or {cut}"
            raise ValueError(
                f"{_OP}: {name}.directions[{i}] has shape {tuple(direction.shape)}, allowed is the shape of {name}.params[{i}], "
                f"{tuple(param.shape)}{also}"
            )
    if params:
        same_device(_OP, f"{name}.directions[0]", directions[0], f"{name}.params[0]", params[0])


def _require_row_scales(weights: Weights) -> None:
    checks.tensors(_OP, "weights.row_scales", weights.row_scales)
    if len(weights.row_scales) != len(weights.params):
        raise ValueError(
            f"{_OP}: weights.row_scales has {len(weights.row_scales)} tensors, allowed is one per weight, {len(weights.params)}"
        )
    for i, (param, scales) in enumerate(zip(weights.params, weights.row_scales, strict=True)):
        if param.dim() == 0:
            raise ValueError(f"{_OP}: weights.params[{i}] is a scalar tensor; allowed are weights [rows, ...]")
        if scales.dtype not in _STATISTICS:
            raise TypeError(f"{_OP}: weights.row_scales[{i}] has dtype {scales.dtype}; allowed are float32 and float64")
        if scales.shape != param.shape[:1]:
            raise ValueError(
                f"{_OP}: weights.row_scales[{i}] has shape {tuple(scales.shape)}, allowed is one per row of weights.params[{i}], "
                f"({len(param)},)"
            )
    if weights.params:
        same_device(_OP, "weights.row_scales[0]", weights.row_scales[0], "weights.params[0]", weights.params[0])


def _require_statistics(others: Others) -> None:
    for i, (average, square) in enumerate(zip(others.averages, others.squares, strict=True)):
        if average.dtype not in _STATISTICS:
            raise TypeError(f"{_OP}: others.averages[{i}] has dtype {average.dtype}; allowed are float32 and float64")
        if square.dtype != average.dtype:
            raise TypeError(
                f"{_OP}: others.squares[{i}] has dtype {square.dtype}; allowed is that of others.averages[{i}], {average.dtype}"
            )


def _require_wide(name: str, values: Tensor, beside: Sequence[Tensor]) -> None:
    """``values`` is of the dtype of sums, on the device of the parameters."""
    if beside:
        same_device(_OP, name, values, "the first parameter", beside[0])
    wide = sum_dtype(values.device)
    if values.dtype != wide:
        raise TypeError(f"{_OP}: {name} has dtype {values.dtype}; allowed is {wide}: use .to({wide})")


def _rates(name: str, values: Sequence[float | Tensor], params: Sequence[Tensor]) -> list[tuple[float, Tensor | None]]:
    if not isinstance(values, (list, tuple)):
        raise TypeError(
            f"{_OP}: {name} must be a list with the rate of each parameter group, got {type(values).__name__}"
        )
    return [checks.rate(_OP, f"{name}[{i}]", value, params) for i, value in enumerate(values)]


def _indices(name: str, values: Sequence[int], count: int, end: int, of: str) -> list[int]:
    if not isinstance(values, (list, tuple)) or any(type(value) is not int for value in values):
        raise TypeError(f"{_OP}: {name} must be a list of ints, got {values!r}")
    if len(values) != count:
        raise ValueError(f"{_OP}: {name} has {len(values)} entries, allowed is one per parameter, {count}")
    for value in values:
        if not 0 <= value < end:
            raise ValueError(f"{_OP}: {name} has the entry {value}; allowed are places in {of}, ints in [0, {end})")
    return list(values)


def _masters(name: str, value: Weights | Biases | Others) -> list[Tensor | None]:
    if value.masters is None:
        return [None] * len(value.params)
    if not isinstance(value.masters, (list, tuple)):
        raise TypeError(f"{_OP}: {name}.masters must be None or a list, got {type(value.masters).__name__}")
    if len(value.masters) != len(value.params):
        raise ValueError(
            f"{_OP}: {name}.masters has {len(value.masters)} entries, allowed is one per parameter, {len(value.params)}"
        )
    for i, (master, param) in enumerate(zip(value.masters, value.params, strict=True)):
        if master is None:
            continue
        where = f"{name}.masters[{i}]"
        floating_tensor(_OP, where, master)
        if master.dtype != torch.float32 or param.dtype not in (torch.bfloat16, torch.float16):
            raise TypeError(
                f"{_OP}: {where} has dtype {master.dtype} beside a parameter of {param.dtype}; allowed are float32 masters of "
                "bfloat16 and float16 parameters"
            )
        if master.shape != param.shape:
            raise ValueError(
                f"{_OP}: {where} has shape {tuple(master.shape)}, allowed is its parameter's, {tuple(param.shape)}"
            )
        same_device(_OP, where, master, f"{name}.params[{i}]", param)
    return list(value.masters)


def _factors(others: Others) -> dict[str, Tensor | None]:
    """Shares and corrections."""
    if not others.params:
        return {"shares": None, "corrections": None}
    found: dict[str, Tensor | None] = {}
    for name, value in (("shares", others.shares), ("corrections", others.corrections)):
        where = f"others.{name}"
        tensor = floating_tensor(_OP, where, value)
        if tensor.shape != (len(others.params),):
            raise ValueError(
                f"{_OP}: {where} has shape {tuple(tensor.shape)}, allowed is one per parameter, ({len(others.params)},)"
            )
        _require_wide(where, tensor, others.params)
        found[name] = tensor
    return found


def _flags(others: Others) -> list[Tensor]:
    """``finite`` as a list of one tensor or none."""
    finite = others.finite
    if finite is None or not others.params:
        return []
    if not isinstance(finite, Tensor) or finite.dtype != torch.bool:
        raise TypeError(
            f"{_OP}: others.finite must be None or a bool tensor, got {getattr(finite, 'dtype', type(finite).__name__)}"
        )
    if finite.shape != (len(others.params),):
        raise ValueError(
            f"{_OP}: others.finite has shape {tuple(finite.shape)}, allowed is one per parameter, ({len(others.params)},)"
        )
    same_device(_OP, "others.finite", finite, "others.params[0]", others.params[0])
    return [finite]


def _rule(rule: AdamRule | None, others: Others) -> list[float]:
    if rule is None:
        if others.params:
            raise ValueError(f"{_OP}: rule is None, but others has {len(others.params)} parameters; pass an AdamRule")
        return [0.0, 0.0, 0.0, 0.0]
    _require_kind("rule", rule, AdamRule)
    return [
        checks.share(_OP, "rule.beta", rule.beta),
        number(_OP, "rule.take", rule.take),
        checks.share(_OP, "rule.b_others", rule.b_others),
        non_negative(_OP, "rule.epsilon", rule.epsilon),
    ]
