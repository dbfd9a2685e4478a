"""Each multi-tensor op by itself beside `torch._foreach_*`, by each backend that serves the device.

The whole update, against fused AdamW, is in test_multi_tensor.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lnb_kernels import fused_step, multi_tensor

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
TENSORS, SIZE = 100, 20_000
BETA, LR, DECAY = 0.9, 0.01, 1e-4


@dataclass
class Case:
    """Both sides work on tensors of their own, which start alike."""

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    rtol: float = 1e-4


class Lists:
    """What the two sides write, and what both read."""

    def __init__(self, device: str) -> None:
        start, self.read = ([torch.randn(SIZE, device=device) for _ in range(TENSORS)] for _ in range(2))
        self.ours, self.plain = ([tensor.clone() for tensor in start] for _ in range(2))
        self.halves, self.plain_halves = ([tensor.bfloat16() for tensor in start] for _ in range(2))
        self.factors = torch.full((TENSORS,), 0.5, device=device)

    def foreach_ema(self) -> list[Tensor]:
        torch._foreach_mul_(self.plain, BETA)
        torch._foreach_add_(self.plain, self.read, alpha=1 - BETA)
        return self.plain

    def foreach_apply(self) -> list[Tensor]:
        steps = torch._foreach_mul(self.read, 0.5)
        torch._foreach_add_(steps, self.plain, alpha=DECAY)
        torch._foreach_add_(self.plain, steps, alpha=-LR)
        return self.plain


def all_finite(lists: Lists) -> Case:
    plain = lambda: torch.stack(torch._foreach_norm(lists.read, float("inf"))).isfinite().all()  # noqa: E731
    return Case(lambda: multi_tensor.all_finite(lists.read), plain)


def ema_combined_(lists: Lists) -> Case:
    def plain() -> list[Tensor]:
        combined = torch._foreach_mul(lists.foreach_ema(), 0.5)
        torch._foreach_add_(combined, lists.read, alpha=1 - BETA)
        return list(combined)

    return Case(lambda: multi_tensor.ema_combined_(lists.ours, lists.read, BETA, lists.factors, 1 - BETA), plain)


def dot(lists: Lists) -> Case:
    plain = lambda: torch.stack([p.sum() for p in torch._foreach_mul(lists.plain, lists.read)])  # noqa: E731
    return Case(lambda: multi_tensor.dot(lists.ours, lists.read), plain)


def squared_row_norms(lists: Lists) -> Case:
    rows = [100] * TENSORS
    plain = lambda: torch.cat([x.view(100, -1).square().sum(1) for x in lists.read])  # noqa: E731
    return Case(lambda: multi_tensor.squared_row_norms(lists.read, rows), plain)


def moment_flags(lists: Lists) -> Case:
    moments = [x.flatten()[:1600].view(40, 40) for x in lists.read]

    def plain() -> list[Tensor]:
        return [torch.stack([part.isfinite().all() for part in (m[-1], m.diagonal())]) for m in moments]

    return Case(lambda: list(multi_tensor.moment_flags(moments).unbind(1)), plain)


def apply_(lists: Lists) -> Case:
    def ours() -> list[Tensor]:
        multi_tensor.apply_(lists.ours, lists.read, lists.factors, LR, DECAY)
        return lists.ours

    return Case(ours, lists.foreach_apply)


def apply_master_(lists: Lists) -> Case:
    def ours() -> tuple[list[Tensor], list[Tensor]]:
        multi_tensor.apply_master_(lists.ours, lists.halves, lists.read, lists.factors, LR, DECAY)
        return lists.ours, lists.halves

    def plain() -> tuple[list[Tensor], list[Tensor]]:
        torch._foreach_copy_(lists.plain_halves, lists.foreach_apply())
        return lists.plain, lists.plain_halves

    return Case(ours, plain, 1e-2)


def fused_step_apply_(lists: Lists) -> Case:
    """All tensors as weights of 100 rows, of 100 layers."""
    ones = torch.ones(100, device=lists.factors.device)
    layers, scales = list(range(TENSORS)), lists.factors.double()
    weights = fused_step.Weights([x.view(100, -1) for x in lists.ours], [x.view(100, -1) for x in lists.read],
                                 [ones] * TENSORS, layers)  # fmt: skip

    def ours() -> list[Tensor]:
        fused_step.apply_(weights, fused_step.Biases(), fused_step.Others(), scales, [LR], [DECAY])
        return lists.ours

    return Case(ours, lists.foreach_apply)


CASES: dict[str, Callable[[Lists], Case]] = {
    f"multi_tensor_{make.__name__}": make
    for make in (
        all_finite,
        ema_combined_,
        dot,
        moment_flags,
        squared_row_norms,
        apply_,
        apply_master_,
    )
}
CASES["fused_step_apply_"] = fused_step_apply_


@pytest.mark.parametrize("who", ["plain", "reference", "native"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", CASES)
def test_time(compare: Callable[..., None], op: str, device: str, who: str) -> None:
    compare(op, who, device, lambda: CASES[op](Lists(device)))
