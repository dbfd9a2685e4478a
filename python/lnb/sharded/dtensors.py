"""Which tensors are shards."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any of ``parameters`` is a ``DTensor``."""
    return any(map(is_dtensor, parameters))


def is_dtensor(parameter: Tensor) -> bool:
    """Whether ``parameter`` is a ``DTensor``. PyTorch's distributed packages are imported for subclasses of tensors only."""
    if type(parameter) in (nn.Parameter, Tensor) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)
