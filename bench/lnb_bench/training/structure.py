"""Comparing what was saved with what a run would save itself: keys, types, shapes and values, all the way down."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lnb_bench.training.errors import CheckpointError
from lnb_bench.training.records import shortened


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
    if type(saved) is not type(own) and not (isinstance(saved, Tensor) and isinstance(own, Tensor)):
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
    elif isinstance(own, Tensor):
        if (saved.shape, saved.dtype, saved.layout) != (own.shape, own.dtype, own.layout):
            raise CheckpointError(
                f"{where} is {saved.dtype} {list(saved.shape)} in the checkpoint and {own.dtype} {list(own.shape)} in this run"
            )
    elif isinstance(own, float) and not math.isfinite(saved):
        raise CheckpointError(f"{where} is {saved} in the checkpoint; it must be finite")


def require_entries(what: str, table: Any, names: tuple[str, ...]) -> None:
    """Require that ``table`` is a dict with the keys ``names``, and perhaps others.

    Raises:
        CheckpointError: it is not; the message names the first key that is missing.
    """
    if not isinstance(table, dict):
        raise CheckpointError(f"{what} is {type(table).__name__} in the checkpoint, must be a table")
    for name in names:
        if name not in table:
            raise CheckpointError(f"{what} has no entry {name!r}")


def require_equal(name: str, saved: Any, own: Any) -> None:
    """Require that ``saved`` has the value of ``own``; a list and a tuple of the same entries are equal.

    Raises:
        CheckpointError: it has not; the message shows both.
    """
    if not same_value(saved, own):
        raise CheckpointError(f"{name} is {shortened(saved)} in the checkpoint and {shortened(own)} in this run")


def same_value(left: Any, right: Any) -> bool:
    """Whether two saved values are equal; a list and a tuple of the same entries are, for JSON knows lists only."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        tensors = isinstance(left, Tensor) and isinstance(right, Tensor)
        return tensors and left.dtype == right.dtype and torch.equal(left.cpu(), right.cpu())
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same_value, left, right))
    return bool(left == right)
