"""What tests of numerical code share: errors measured against float64, and inputs in awkward layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lnb_kernels import multi_tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def relative_errors(actual: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """``(largest, root mean square)`` error of ``actual``, each relative to the same norm of the float64 ``truth``."""
    if truth.numel() == 0:
        return 0.0, 0.0
    difference = actual.double() - truth
    scale, rms = truth.abs().max(), truth.square().mean().sqrt()
    tiny = torch.finfo(torch.float64).tiny
    return (
        (difference.abs().max() / (scale + tiny)).item(),
        (difference.square().mean().sqrt() / (rms + tiny)).item(),
    )


def assert_close_to_reference(
    actual: torch.Tensor, truth: torch.Tensor, plain: torch.Tensor, factor: float = 2.0
) -> None:
    """Fail unless ``actual`` errs at most ``factor`` times as much as plain PyTorch does in the same dtype.

    Both the largest and the root-mean-square error count, each relative to the norm of ``truth``. An error of one unit
    in the last place of ``actual``'s dtype is always allowed, for where plain PyTorch happens to be exact: two for
    float32, and 64 for float64, since the truth then rounds as the result does.

    Args:
        actual: the result under test.
        truth: the right answer in float64.
        plain: what the obvious PyTorch expression gives in the dtype in which ``actual`` was computed.
        factor: how much worse than ``plain`` the result may be.
    """
    assert truth.dtype == torch.float64, "the truth must be float64"
    assert actual.shape == truth.shape == plain.shape, (actual.shape, truth.shape, plain.shape)
    assert bool(torch.isfinite(actual).all()), "the result is not finite"
    unit = torch.finfo(actual.dtype).eps * {torch.float64: 64, torch.float32: 2}.get(actual.dtype, 1)
    for name, error, allowed in zip(
        ("largest", "rms"), relative_errors(actual, truth), relative_errors(plain, truth), strict=True
    ):
        limit = factor * allowed + unit
        assert error <= limit, f"{name} relative error {error:.3e} exceeds {limit:.3e} (plain PyTorch: {allowed:.3e})"


def layouts(x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """``x`` in layouts that kernels get wrong: the same values, other strides."""
    yield "contiguous", x.contiguous()
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
    wide[..., 1::2] = x
    yield "every second column", wide[..., 1::2]
    if x.dim() >= 2:
        yield "column-major", x.mT.contiguous().mT
    if x.dim() >= 3:
        yield "leading dimensions swapped", x.transpose(0, 1).contiguous().transpose(0, 1)


def average_(
    averages: Sequence[torch.Tensor], values: Sequence[torch.Tensor], beta: Any, ok: torch.Tensor | None = None
) -> None:
    """``average <- beta average + (1 - beta) value``: a call that writes one list of tensors and reads another."""
    multi_tensor.ema_combined_(averages, values, beta, torch.ones(len(averages)), 0.0, ok)


def with_ones(x: torch.Tensor) -> torch.Tensor:
    """``[x 1]``: rows of all leading dimensions in float64, with a column of ones."""
    rows = x.double().reshape(-1, x.shape[-1])
    return torch.cat((rows, torch.ones(rows.shape[0], 1, dtype=torch.float64)), 1)


class Operators(TorchDispatchMode):
    """Within it, the names of the operators that reach the device are noted, in ``seen``; in ``launched`` those that do more
    than look at memory in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.launched: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        if not func.is_view:
            self.launched.append(str(func))
        return func(*args, **(kwargs or {}))
