"""Measuring what the optimizer adds to a training step, without waiting for the device while it trains."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

import torch

_KEPT = 200  # steps


class HostClock:
    """Marks are times of the host: right where operations are done when their call returns."""

    def mark(self) -> Any:
        """A point in time."""
        return time.perf_counter()

    def seconds(self, start: Any, stop: Any) -> float:
        """From one mark to another."""
        return float(stop - start)


class DeviceClock:
    """Marks are events in the device's stream: setting them does not wait, reading them does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Any:
        """A point in the stream; None while a CUDA graph is captured."""
        with torch.cuda.device(self._device):
            if torch.cuda.is_current_stream_capturing():
                return None
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

    def seconds(self, start: Any, stop: Any) -> float:
        """From one mark to another; waits until both are reached."""
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3


class OverheadMeter:
    """Times of the last steps: in the optimizer, and between its steps.

    Between two steps lie the forward and backward passes (and whatever else the program does, as loading data); on steps
    that gather statistics these take longer, which is part of the overhead. The difference of the medians tells by how
    much; where every step gathers, or none did, it is not known and not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = DeviceClock(device) if device.type == "cuda" else HostClock()
        self._left: Any = None
        self._entered: Any = None
        self._steps: deque[tuple[Any, Any, Any, bool]] = deque(maxlen=_KEPT)

    def enter(self) -> None:
        """The optimizer begins."""
        self._entered = self._clock.mark()

    def leave(self, gathered: bool) -> None:
        """It ends; ``gathered`` says whether the passes before it gathered statistics."""
        now = self._clock.mark()
        if self._left is not None and self._entered is not None and now is not None:
            self._steps.append((self._left, self._entered, now, gathered))
        self._left = now

    def read(self) -> float | None:
        """Time added relative to the rest of a step; None until there are steps enough. Waits for the device."""
        between: dict[bool, list[float]] = {True: [], False: []}
        inside: dict[bool, list[float]] = {True: [], False: []}
        for left, entered, now, gathered in self._steps:
            between[gathered].append(self._clock.seconds(left, entered))
            inside[gathered].append(self._clock.seconds(entered, now))
        if not self._steps:
            return None
        usual = {kind: statistics.median(times) for kind, times in between.items() if times}
        extra = max(0.0, usual[True] - usual[False]) if len(usual) == 2 else 0.0
        share = len(between[True]) / len(self._steps)
        step = sum(statistics.median(times) * len(times) for times in inside.values() if times) / len(self._steps)
        rest = usual.get(False, usual.get(True, 0.0))
        return (step + share * extra) / rest if rest > 0 else None
