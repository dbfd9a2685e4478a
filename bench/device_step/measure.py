"""One training step of a case under the meter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lnb
import torch
from torch import nn

from device_step.counting import Record, counting
from device_step.models import Case


@dataclass
class Steps:
    """What the steps of one optimizer cost.

    Attributes:
        ordinary: a step between two refreshes.
        refresh: a step at which every layer is refreshed.
        backward, moments: forward and backward of an ordinary step, and of one that gathers second moments.
        parameter_bytes, state_bytes: of the model, and of the optimizer's state.
    """

    ordinary: Record
    refresh: Record
    backward: Record
    moments: Record
    parameter_bytes: int
    state_bytes: int


def measure(case: Case, **settings: Any) -> Steps:
    """LNB's default, or with ``settings``."""
    with torch.device("meta"):
        model = case.model()
    optimizer = lnb.LNB(model, staggered=False, rates=None, **settings)
    records: list[tuple[Record, Record]] = []
    for _ in range(optimizer.config.refresh_every + 1):
        records.append((_counted(lambda: _backward(case, model, optimizer)), _counted(optimizer.step)))
    return Steps(
        records[-2][1], records[-1][1], records[-2][0], records[-1][0],
        sum(p.numel() * p.element_size() for p in model.parameters()), _state_bytes(optimizer),
    )  # fmt: skip


def adamw(case: Case) -> Record:
    """A step of PyTorch's fused AdamW on the same model, from its sizes: it reads four tensors of a size and writes three."""
    from device_step.counting import Launch
    from device_step.operators import tables

    with torch.device("meta"):
        parameters = list(case.model().parameters())
    moved = 28 * sum(p.numel() for p in parameters)
    return Record([Launch("fused AdamW", tables(parameters, 4), moved)])


def _backward(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    case.loss(model).backward()


def _counted(call: Any) -> Record:
    with counting() as counter:
        call()
        return counter.finish()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    storages = {
        value.untyped_storage()._cdata: value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(storages.values())
