"""Faults to plant in the package, by which the harness shows that it would find such ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

import lnb_kernels as lk


def permute(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The results in another order."""
    found: torch.Tensor = original(*args, **kwargs)
    return found.flip(0)


def lose_sign(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result without its sign."""
    return original(*args, **kwargs).abs()


def drop_last(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The last tensor keeps what it was."""
    averages = kwargs["averages"]
    last = averages[-1].clone() if averages else None
    found = original(*args, **kwargs)
    if last is not None:
        averages[-1].copy_(last)
    return found


def write_first(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A write before the checks."""
    params = kwargs["params"]
    if isinstance(params, list) and params and type(params[0]) is torch.Tensor and params[0].device.type == "cpu":
        with torch.no_grad():
            params[0].add_(1)
            try:
                return original(*args, **kwargs)
            finally:
                params[0].sub_(1).add_(1 if params[0].numel() else 0)
    return original(*args, **kwargs)


def forget_name(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Errors that name nothing."""
    try:
        return original(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise type(error)("something is wrong") from None


def write_beside(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A write to an argument that is only read."""
    found = original(*args, **kwargs)
    with torch.no_grad():
        kwargs["v"].mul_(2)
    return found


def kill(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The end of the process, without a word."""
    if kwargs["steps"] == 5:
        os._exit(11)
    return original(*args, **kwargs)


def abort(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The end of the process by a signal."""
    os.abort()


def hang(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """No end."""
    time.sleep(1e6)


PLANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "permute": ("multi_tensor.dot", permute),
    "lose sign": ("cov_matvec", lose_sign),
    "drop last": ("multi_tensor.ema_combined_", drop_last),
    "write first": ("multi_tensor.apply_", write_first),
    "forget name": ("arrow_solve", forget_name),
    "write beside": ("arrow_solve", write_beside),
    "kill": ("newton_schulz", kill),
    "abort": ("spd_inverse", abort),
    "hang": ("pcg", hang),
}


def plant(name: str) -> None:
    """Replace an op of this process by one with the fault of this name."""
    op, fault = PLANTS[name]
    *within, last = op.split(".")
    owner: Any = lk.multi_tensor if within else lk
    original = getattr(owner, last)
    setattr(owner, last, lambda *args, **kwargs: fault(original, *args, **kwargs))
