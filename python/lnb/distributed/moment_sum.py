"""A flat buffer of second moments that ranks add up, and where each probe lies in it.

Second moments are symmetric: one triangle of each is sent (:mod:`lnb.distributed.triangles`). Moments of channels come first, as
they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lnb.distributed.triangles import pack_, rectangle, unpacked
from lnb.layers.capture import Capture
from lnb.layers.claimed import Layer

_ALIGNED = 32  # entries: moments of channels start where vector loads like it


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
        """The number of the share that is here."""
        return 0 if self.layer.columns is None else self.layer.columns.index

    @property
    def side(self) -> int:
        """Rows of a matrix."""
        return self.shape[-1]

    @property
    def matrices(self) -> int:
        """Diagonal blocks of one part."""
        return math.prod(self.shape[:-2])

    @property
    def among(self) -> list[Capture]:
        """The captures that the layer has now; a detached layer has none, which is reported elsewhere."""
        found = [part for one in self.layer.captures for part in one.live_captures()]
        return found or [self.capture]

    @property
    def probe(self) -> Tensor | None:
        """The probe that the capture has now."""
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
        vectors = [slot for slot in slots if slot.of_channels]
        by_side: dict[int, list[Slot]] = {}
        for slot in slots:
            if not slot.of_channels:
                by_side.setdefault(slot.side, []).append(slot)
        lengths = [-(-slot.parts * math.prod(slot.shape) // _ALIGNED) * _ALIGNED for slot in vectors]
        counts = [sum(slot.parts * slot.matrices for slot in alike) for alike in by_side.values()]
        sizes = [count * math.prod(rectangle(side)) for side, count in zip(by_side, counts, strict=True)]
        self.buffer = torch.zeros(sum(lengths) + sum(sizes) + header, dtype=dtype, device=device)
        *parts, self.header = self.buffer.split([*lengths, *sizes, header])
        self._vectors = [
            (slot, part[: slot.parts * math.prod(slot.shape)].view(slot.parts, *slot.shape)[slot.part])
            for slot, part in zip(vectors, parts, strict=False)
        ]
        self._alike = [
            _Alike(side, alike, part.view(count, *rectangle(side)))
            for (side, alike), part, count in zip(by_side.items(), parts[len(vectors) :], counts, strict=True)
        ]
        self._work: Any = None

    def fill(self, counts: bool = True) -> None:
        """Copy what this rank's backward passes gathered; zeros stand for what they did not reach.

        Among ranks with the same samples only one ``counts``; shares of a layer's inputs count on every rank.
        """
        for slot, total in self._vectors:
            gradient = _gathered(slot) if counts or slot.parts > 1 else None
            if gradient is not None:
                total.copy_(gradient)
        for alike in self._alike:
            alike.fill(counts)

    def start(self, groups: list[Any]) -> None:
        """Add over ``groups``, one after the other; the host does not wait for the last."""
        for group in groups[:-1]:
            dist.all_reduce(self.buffer, group=group)
        for group in groups[-1:]:
            self._work = dist.all_reduce(self.buffer, group=group, async_op=True)

    def wait(self) -> None:
        """Wait until the sums are there."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def give(self) -> None:
        """Have the captures hold the sums. A layer without a gradient is left without one."""
        for slot, total in self._vectors:
            _give(slot, total)
        for alike in self._alike:
            alike.give()


class _Alike:
    """The matrices of one size.

    Args:
        side: their rows.
        slots: the probes.
        rectangles: their places in the buffer, ``[parts and matrices of all slots, ..]``.
    """

    def __init__(self, side: int, slots: list[Slot], rectangles: Tensor) -> None:
        self._side, self._slots = side, slots
        of_slots = rectangles.split([slot.parts * slot.matrices for slot in slots])
        self._own = [
            part.narrow(0, slot.part * slot.matrices, slot.matrices) for slot, part in zip(slots, of_slots, strict=True)
        ]
        self._all = rectangles if all(slot.parts == 1 for slot in slots) else None

    def fill(self, counts: bool) -> None:
        """Write what was gathered, by few calls where all of it was."""
        used = [(slot, own) for slot, own in zip(self._slots, self._own, strict=True) if counts or slot.parts > 1]
        found = [(own, gradient) for slot, own in used if (gradient := _gathered(slot)) is not None]
        if self._all is not None and len(found) == len(self._slots):
            pack_(self._all, [gradient for _, gradient in found])
        else:
            for own, gradient in found:
                pack_(own, [gradient])

    def give(self) -> None:
        """Have the probes hold the sums."""
        together = torch.cat(self._own) if self._all is None else self._all
        totals = unpacked(together, self._side).split([slot.matrices for slot in self._slots])
        for slot, total in zip(self._slots, totals, strict=True):
            _give(slot, total.view(slot.shape))


def _gathered(slot: Slot) -> Tensor | None:
    """What this rank has of a slot; None where that is nothing, or of another shape than was promised."""
    gradient = None if slot.probe is None else slot.probe.grad
    return gradient if gradient is not None and gradient.shape == slot.shape else None


def _give(slot: Slot, total: Tensor) -> None:
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
