"""Training steps of a case under the meter: LNB's, and fused AdamW's on the same model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lnb
from meter.counting import Launch, Record, counting
from meter.models import Case
from meter.operators import tables
from meter.timeline import seconds


@dataclass
class Steps:
    """What the steps of LNB cost on a model.

    Attributes:
        ordinary: a step between two refreshes.
        refresh: a step at which every layer is refreshed.
        backward, moments: forward and backward before an ordinary step, and before a refresh, with the second moments.
        plain: forward and backward of the model without LNB.
        adamw: a step of PyTorch's fused AdamW: it reads four tensors of a parameter's size and writes three.
        parameter_bytes, state_bytes: of the model, and of what LNB keeps between steps.
        refresh_every: steps of a cycle.
    """

    ordinary: Record
    refresh: Record
    backward: Record
    moments: Record
    plain: Record
    adamw: Record
    parameter_bytes: int
    state_bytes: int
    refresh_every: int

    @property
    def figures(self) -> dict[str, float]:
        """What the budgets bound."""
        usual = self.refresh_every - 1
        cycle = usual * seconds([self.backward, self.ordinary]) + seconds([self.moments, self.refresh])
        return {
            "launches, ordinary step": self.ordinary.launches,
            "launches, refresh of everything": self.refresh.launches,
            "launches for moments": self.moments.launches - self.backward.launches,
            "bytes, ordinary step / fused AdamW's": self.ordinary.bytes / self.adamw.bytes,
            "borrowed memory / parameter bytes": self.ordinary.borrowed / self.parameter_bytes,
            "borrowed memory of a refresh / parameter bytes": self.refresh.borrowed / self.parameter_bytes,
            "state / AdamW's": self.state_bytes / (2 * self.parameter_bytes),
            "simulated step / fused AdamW's": cycle / self.refresh_every / seconds([self.plain, self.adamw]),
            "copies from the host": len(self.ordinary.host_copies) + len(self.refresh.host_copies),
            "host reads": len(self.ordinary.host_reads) + len(self.refresh.host_reads),
        }


def measure(case: Case, autocast: torch.dtype | None = None, cuda_module: bool = True, **settings: Any) -> Steps:
    """LNB's default, or with ``settings``, in float32 or with layers in the dtype ``autocast``, also without the CUDA module."""
    with torch.device("meta"):
        model = case.model()
    parameters = list(model.parameters())
    optimizer = lnb.LNB(model, staggered=False, **settings)

    def backward(model: nn.Module) -> None:
        model.zero_grad()
        case.loss(model).backward()

    def counted(call: Callable[[], Any]) -> Record:
        with counting(autocast, cuda_module) as counter:
            call()
            return counter.finish()

    records = []
    for _ in range(optimizer.config.refresh_every + 1):
        optimizer.zero_grad()
        records.append((counted(lambda: backward(model)), counted(optimizer.step)))
    lnb.detach(model)
    adamw = Record([Launch("fused AdamW", tables(parameters, 4), 28 * sum(p.numel() for p in parameters))])
    return Steps(
        records[-2][1], records[-1][1], records[-2][0], records[-1][0], counted(lambda: backward(model)), adamw,
        sum(p.numel() * p.element_size() for p in parameters), _kept(optimizer, cuda_module), optimizer.config.refresh_every,
    )  # fmt: skip


def _kept(optimizer: lnb.LNB, cuda_module: bool) -> int:
    """Bytes of the optimizer's state, and of the memory that it keeps to work in."""
    values = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in values}
    with counting(cuda_module=cuda_module):  # which asks whether steps are fused as a GPU would answer
        return sum(storages.values()) + optimizer.plan().scratch_bytes
