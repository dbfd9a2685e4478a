"""Autocast: layers cast their arguments as PyTorch's own do; statistics never run in the cast dtype."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lnb_kernels import _backend


def cast_layer(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The arguments of a layer as autocast hands them to ``F.linear`` and ``F.conv2d``: all but float64 are cast.

    Done before the op, so that its probe sees the input that the layer multiplies.
    """
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(x), cast(weight), None if bias is None else cast(bias)


def disabled(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off. Inside an autocast region, an op would else multiply, and return, statistics in bfloat16."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def call(op: str, tensor: torch.Tensor, *args: Any) -> Any:
    """Run ``op`` by its backend (:func:`lnb_kernels._backend.call`) with autocast off."""
    with disabled(tensor.device):
        return _backend.call(op, tensor, *args)
