"""A flat buffer of second moments that ranks add: which probe lies where in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lnb.layers.capture import Capture
from lnb.layers.claimed import Layer

_ALIGNED = 32  # entries: every part of the buffer starts where vector loads like it


@dataclass(frozen=True)
class Slot:
    """A probe's place."""

    layer: Layer
    capture: Capture
    of_channels: bool
    shape: tuple[int, ...]

    @property
    def parts(self) -> int:
        """How many shares of the layer's inputs are summed apart from each other."""
        return 1 if self.layer.columns is None else self.layer.columns.of

    @property
    def part(self) -> int:
        """Which of them is here."""
        return 0 if self.layer.columns is None else self.layer.columns.index

    @property
    def numel(self) -> int:
        """Entries of all parts."""
        return self.parts * math.prod(self.shape)

    @property
    def among(self) -> list[Capture]:
        """The captures that the layer has now; those of a detached one, which has none, are said elsewhere to be missing."""
        found = [part for one in self.layer.captures for part in one.live_captures()]
        return found or [self.capture]

    @property
    def probe(self) -> Tensor | None:
        """As it is now."""
        return self.capture.channel_probe if self.of_channels else self.capture.probe


class MomentSum:
    """A flat buffer of second moments that is added over ranks, while something else runs.

    Args:
        slots: of one device and dtype.
        device: of the buffer.
        dtype: of the buffer.
        header: further entries, at its end.
    """

    def __init__(self, slots: list[Slot], device: torch.device, dtype: torch.dtype, header: int = 0) -> None:
        lengths = [-(-slot.numel // _ALIGNED) * _ALIGNED for slot in slots]
        self._slots = slots
        self.buffer = torch.zeros(sum(lengths) + header, dtype=dtype, device=device)
        *parts, self.header = self.buffer.split([*lengths, header])
        self._totals = [
            part[: slot.numel].view(slot.parts, *slot.shape)[slot.part] for part, slot in zip(parts, slots, strict=True)
        ]
        self._work: Any = None

    def fill(self, counts: bool = True) -> None:
        """Copy what this rank's backward passes gathered; zeros stand for what they did not reach.

        Of ranks with the same samples one ``counts``; what each has of a layer's inputs counts anyway.
        """
        used = [
            (total, slot) for total, slot in zip(self._totals, self._slots, strict=True) if counts or slot.parts > 1
        ]
        pairs = [(total, slot.probe) for total, slot in used]
        found = [(total, probe.grad) for total, probe in pairs if probe is not None and probe.grad is not None]
        found = [(total, gradient) for total, gradient in found if total.shape == gradient.shape]
        if found:
            torch._foreach_copy_([total for total, _ in found], [gradient for _, gradient in found])

    def start(self, groups: list[Any]) -> None:
        """Add over ``groups``, one after the other; the host does not wait for the last."""
        for group in groups[:-1]:
            dist.all_reduce(self.buffer, group=group)
        for group in groups[-1:]:
            self._work = dist.all_reduce(self.buffer, group=group, async_op=True)

    def wait(self) -> None:
        """Have the sums."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def give(self) -> None:
        """Have the captures hold the sums. A layer without a gradient is left without one."""
        for total, slot in zip(self._totals, self._slots, strict=True):
            probe = slot.probe
            if slot.layer.weight.grad is not None and probe is not None and probe.shape == total.shape:
                probe.grad = total


def begun(kind: tuple[torch.device, torch.dtype], slots: list[Slot], groups: list[Any], fills: bool) -> MomentSum:
    """A sum that is on its way, of what this rank gathered if it ``fills`` its part, else of zeros."""
    part = MomentSum(slots, *kind)
    if fills:
        part.fill()
    part.start(groups)
    return part
