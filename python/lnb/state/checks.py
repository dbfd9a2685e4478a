"""Whether a saved state is whole: every parameter's tensors are those of :mod:`lnb.state.schema`, real and finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.layers.claimed import Layer
from lnb.state.schema import SCHEMA, Kind, allowed_shapes, required_keys
from lnb_kernels import multi_tensor

_DTYPES = (torch.float32, torch.float64)


def check_entries(
    entries: Iterable[tuple[nn.Parameter, dict[str, Any]]],
    names: dict[nn.Parameter, str],
    by_weight: dict[nn.Parameter, Layer],
    config_of: Callable[[Layer | None], Config],
) -> None:
    """Require that every parameter's saved state is whole, of the right shapes, real and finite.

    Raises:
        TypeError: the state of a parameter is no dict.
        ValueError: it lacks something, or has a tensor that does not fit; the message names the parameter and the key.
    """
    tensors: dict[str, Tensor] = {}
    for parameter, entry in entries:
        name, layer = names.get(parameter, "(not of the model)"), by_weight.get(parameter)
        if not isinstance(entry, dict):
            raise TypeError(f"state_dict: the state of parameter {name!r} must be a dict, not {entry!r}")
        config = config_of(layer)
        for key, value in entry.items():
            where = f"{key!r} of parameter {name!r}"
            _check_tensor(where, value, allowed_shapes(str(key), parameter, layer, config))
            if SCHEMA[str(key)].kind is Kind.COUNT and not float(value) >= 0:
                raise ValueError(f"state_dict: {where} is {float(value)}, it must be a count of at least 0")
            tensors[where] = value
        missing = required_keys(parameter, layer, config) - entry.keys() if entry else set()
        if missing:
            raise ValueError(
                f"state_dict: the state of parameter {name!r} has {sorted(map(str, entry))} and lacks {sorted(missing)}; load "
                f"all of what LNB.state_dict() returned, of an optimizer that claimed the same layers"
            )
    _require_finite(tensors)


def _check_tensor(where: str, value: object, wanted: list[tuple[int, ...]]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) not in wanted:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"value {value!r}"
        raise ValueError(
            f"state_dict: {where} has {found}, this optimizer needs {' or '.join(map(str, wanted)) if wanted else 'none'}"
        )
    if value.dtype not in _DTYPES or value.layout != torch.strided or value.is_meta:
        raise ValueError(
            f"state_dict: {where} is {value.dtype}, {value.layout}, on {value.device}; it must be dense float32 or float64 "
            f"with values"
        )


def _require_finite(tensors: dict[str, Tensor]) -> None:
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for where, value in tensors.items():
        by_device.setdefault(value.device, {})[where] = value.detach()
    for found in by_device.values():
        if bool(multi_tensor.all_finite(list(found.values()))):
            continue
        where = next(where for where, value in found.items() if not bool(value.isfinite().all()))
        raise ValueError(f"state_dict: {where} holds NaN or inf; the file is damaged, load another one")
