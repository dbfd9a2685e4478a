"""Rates that are tensors on another device than the parameters: no step waits for a device, or copies from the host."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from support import Operators
from torch import Tensor

from lnb.apply import joined_decay
from lnb.context import rate_like
from lnb_kernels.multi_tensor.grouping import rate_beside

CPU, META = torch.device("cpu"), torch.device("meta")


class OnGpu:
    """A rate on an accelerator, which nobody reads."""

    is_cpu, device = False, torch.device("cuda", 0)

    def __init__(self) -> None:
        self.copies: list[tuple[torch.device, bool]] = []

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        self.copies.append((device, non_blocking))
        return torch.tensor(0.5)

    def item(self) -> float:
        raise AssertionError("the host waits for the device")


def test_a_kernel_reads_a_rate_on_its_own_device() -> None:
    here = torch.tensor(0.25)
    assert rate_beside((0.5, None), META) == (0.5, None)
    assert rate_beside((0.0, here), CPU) == (0.0, here)
    assert rate_beside((0.0, here), META) == (0.25, None)
    elsewhere = OnGpu()
    _, copied = rate_beside((0.0, cast(Any, elsewhere)), torch.device("cuda", 1))
    assert copied == 0.5
    assert elsewhere.copies == [(torch.device("cuda", 1), True)]
    assert rate_beside((0.0, torch._neg_view(here)), CPU) == (0.0, -0.25)


@pytest.mark.parametrize("rate", [0.25, torch.tensor(0.25)])
def test_a_rate_on_the_host_is_filled_in(rate: float | Tensor) -> None:
    assert torch.equal(rate_like(rate, torch.empty(3, dtype=torch.float64)), torch.tensor(0.25, dtype=torch.float64))
    with Operators() as operators:
        filled = rate_like(rate, torch.empty(3, device="meta"))
    assert (filled.shape, filled.device) == ((), META)
    assert not any("copy" in name for name in operators.launched), operators.launched


def test_a_shortened_weight_decay_of_such_rates() -> None:
    factors = torch.tensor([1.0, 0.5], dtype=torch.float64)
    lr, decay = (rate_like(value, factors) for value in (torch.tensor(0.25), 0.5))
    assert joined_decay(decay, factors, lr).tolist() == [0.5, 2.25]
