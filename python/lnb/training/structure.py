"""Comparing what was saved with what a run would save itself: the same keys, types and shapes all the way down."""

from __future__ import annotations

import math
from typing import Any

import torch

from lnb.training.errors import CheckpointError


def require_like(where: str, saved: Any, own: Any) -> None:
    """Require that ``saved`` has the structure of ``own``: dicts of the same keys, lists of the same length, tensors of the
    same shape and dtype, values of the same type, and finite numbers.

    Args:
        where: what to call ``saved`` in messages.
        saved: from a file.
        own: of this run.

    Raises:
        CheckpointError: it has not; the message names the first difference.
    """
    if type(saved) is not type(own):
        raise CheckpointError(
            f"{where} is of type {type(saved).__name__} in the checkpoint and {type(own).__name__} in this run"
        )
    if isinstance(own, dict):
        if saved.keys() != own.keys():
            different = sorted(map(str, saved.keys() ^ own.keys()))
            raise CheckpointError(
                f"{where} differs between the checkpoint and this run in its entries {', '.join(different)}"
            )
        for key, value in own.items():
            require_like(f"{where}.{key}", saved[key], value)
    elif isinstance(own, list):
        if len(saved) != len(own):
            raise CheckpointError(f"{where} has {len(saved)} entries in the checkpoint and {len(own)} in this run")
        for i, value in enumerate(own):
            require_like(f"{where}[{i}]", saved[i], value)
    elif isinstance(own, torch.Tensor):
        found, wanted = ((tuple(tensor.shape), tensor.dtype) for tensor in (saved, own))
        if found != wanted:
            raise CheckpointError(f"{where} is {found} in the checkpoint and {wanted} in this run")
    elif isinstance(own, float) and not math.isfinite(saved):
        raise CheckpointError(f"{where} is {saved} in the checkpoint; it must be finite")
