"""Argument checks that the two forms of conjugate gradients share. ``op`` is how errors begin."""

from __future__ import annotations

from torch import Tensor

from lnb_kernels import _checks

Arrow = tuple[Tensor, Tensor]


def iterations(op: str, value: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an int of at least 0, and below ``2**31``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{op}: iterations={value!r} is not allowed; it must be an int >= 0 and below 2**31")


def right_hand_side(op: str, name: str, g: Tensor) -> None:
    """Require rows ``[..., m, D]`` or ``[..., m, D+1]``."""
    _checks.floating_tensor(op, name, g)
    if g.dim() < 2:
        raise ValueError(f"{op}: {name} has shape {tuple(g.shape)}; allowed is [..., m, D] or [..., m, D+1]")


def start(op: str, name: str, h0: Tensor | None, g_name: str, g: Tensor) -> None:
    """Require None, or a tensor beside ``g`` and of its shape."""
    if h0 is not None:
        _checks.floating_tensor(op, name, h0)
        _checks.shape_is(op, name, h0, g.shape, f"the shape of {g_name}")
        _checks.same_device(op, name, h0, g_name, g)


def second_moment(op: str, name: str, s: Tensor, g_name: str, g: Tensor) -> None:
    """Require ``[..., D+1, D+1]`` that fits the columns of ``g`` and broadcasts to its leading dimensions."""
    _checks.floating_tensor(op, name, s)
    _checks.same_device(op, name, s, g_name, g)
    if s.dim() < 2 or s.shape[-1] != s.shape[-2] or s.shape[-1] < 1:
        raise ValueError(f"{op}: {name} has shape {tuple(s.shape)}; allowed is [..., D+1, D+1]")
    size = s.shape[-1]
    if g.shape[-1] not in (size - 1, size):
        raise ValueError(
            f"{op}: {g_name} has shape {tuple(g.shape)}; its last dimension must be D={size - 1} or D+1={size}, as "
            f"{name} says"
        )
    batch, lead = g.shape[:-2], s.shape[:-2]
    fits = len(lead) <= len(batch) and all(
        ours in (1, theirs) for ours, theirs in zip(reversed(lead), reversed(batch), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{op}: {name} has leading dimensions {tuple(lead)}, which do not broadcast to {tuple(batch)} of {g_name}"
        )


def pair(op: str, value: Arrow | None) -> None:
    """Require None, or two tensors."""
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{op}: arrow must be None or a tuple (mu, var), got {type(value).__name__}")
    for name, part in zip(("arrow mu", "arrow var"), value, strict=True):
        _checks.floating_tensor(op, name, part)


def arrow(
    op: str, value: Arrow | None, g_name: str, g: Tensor, features: int, meaning: str
) -> tuple[Tensor | None, Tensor | None]:
    """Require None, or ``(mu, var)`` of ``features`` numbers each, on the device of ``g``; returns ``mu`` and ``var``."""
    pair(op, value)
    if value is None:
        return None, None
    for name, part in zip(("arrow mu", "arrow var"), value, strict=True):
        _checks.same_device(op, name, part, g_name, g)
        _checks.shape_is(op, name, part, (*g.shape[:-2], features), meaning)
    return value
