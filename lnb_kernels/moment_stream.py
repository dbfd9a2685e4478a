"""Second moments on a CUDA stream beside that of the backward pass.

A moment is read at the step: nothing in the backward pass waits for it. In one stream it takes its turn all the same; on one of
its own it fills multiprocessors that products of few tiles leave idle. It helps where a layer's own products do not fill the GPU,
and costs two events a layer, so it is off until it is asked for.

A moment stays in the stream of the backward pass where the side stream cannot help or could do harm: off CUDA; inside a capture
of a CUDA graph; in compiled code; in a backward pass that is itself recorded; where one launch makes it and a layer's weight
gradient; and of a layer that is used more than once before a backward pass, whose moments autograd adds up.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lnb_kernels._checks import PLAIN


class Streams(Protocol):
    """What is asked of a device: :class:`CudaStreams`, or what stands for it in a test."""

    def serves(self, device: torch.device) -> bool:
        """Whether operations on the device may go to another stream now."""

    def run(self, moment: Callable[[], Tensor], read: tuple[Tensor, ...]) -> Tensor:
        """Have ``moment`` computed from ``read`` behind what is queued so far, beside what follows."""

    def join(self) -> None:
        """Let all that is queued from now on in the current streams follow the moments."""


class CudaStreams:
    """PyTorch's streams. The side stream has the lowest priority that there is, 0, which PyTorch's default stream has too:
    training on a stream of a higher one lets its kernels go first."""

    def __init__(self) -> None:
        self._side: dict[torch.device, torch.cuda.Stream] = {}
        self._pending: set[torch.device] = set()

    def serves(self, device: torch.device) -> bool:
        """CUDA, and no capture: a graph's branches would outlive this call."""
        return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()

    def run(self, moment: Callable[[], Tensor], read: tuple[Tensor, ...]) -> Tensor:
        """Memory that the side stream reads is not given away before it has read it, and the result's likewise."""
        device = read[0].device
        side, current = self._side.get(device), torch.cuda.current_stream(device)
        if side is None:
            side = self._side[device] = torch.cuda.Stream(device, priority=0)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = moment()
        for tensor in read:
            tensor.record_stream(side)
        result.record_stream(current)
        self._pending.add(device)
        return result

    def join(self) -> None:
        """No host waits."""
        while self._pending:
            device = self._pending.pop()
            torch.cuda.current_stream(device).wait_stream(self._side[device])


class _State:
    def __init__(self) -> None:
        self.side = False
        self.streams: Streams = CudaStreams()
        self.uses: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Allowed(threading.local):
    """Whether the backward pass that runs in this thread is of a layer whose moment may go aside."""

    now = False


_state, _allowed = _State(), _Allowed()


def set_moment_stream(stream: str) -> None:
    """Where backward passes on CUDA devices compute second moments: in their own stream, or beside it.

    :meth:`lnb.LNB.step` waits for them. Who reads the gradient of a probe without it calls :func:`join_moments` before.

    Args:
        stream: ``"same"`` (default), or ``"side"``: on one of the lowest priority, where :mod:`lnb_kernels.moment_stream` says.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(stream, str) or stream not in ("same", "side"):
        raise ValueError(f"set_moment_stream: stream={stream!r} is not allowed; it must be 'same' or 'side'")
    _state.side = stream == "side"


def join_moments() -> None:
    """Let what is queued from now on follow the moments on side streams. The host does not wait."""
    _state.streams.join()


@contextmanager
def replaced_streams(streams: Streams) -> Iterator[None]:
    """Inside, ``streams`` are asked, and the setting is ``"side"``. For tests."""
    before = _state.streams, _state.side
    _state.streams, _state.side = streams, True
    try:
        yield
    finally:
        _state.streams, _state.side = before


class ProbeUse:
    """Uses of a probe in forward passes that no backward pass has reached."""

    def __init__(self, probe: Tensor) -> None:
        self._probe = weakref.ref(probe)
        self._open = self._most = 0
        probe.register_hook(self._before_it_is_added)

    def begin(self) -> None:
        """One more."""
        self._open += 1
        self._most = max(self._most, self._open)

    def end(self) -> bool:
        """One less; returns whether there was no other beside it."""
        alone = self._most == 1
        self._open = max(0, self._open - 1)
        if self._open == 0:
            self._most = 0
        return alone

    def _before_it_is_added(self, gradient: Tensor) -> None:
        """Autograd adds to a gradient that there is in the stream of the backward pass."""
        probe = self._probe()
        if probe is not None and probe.grad is not None:
            join_moments()


def use_of(probe: Tensor | None) -> ProbeUse | None:
    """Count a use of ``probe`` in a forward pass; None where its moment stays in the stream of the backward pass."""
    if not _state.side or type(probe) not in PLAIN or probe is None or not probe.is_leaf:
        return None
    found: ProbeUse | None = _state.uses.get(probe)
    if found is None:
        found = _state.uses[probe] = ProbeUse(probe)
    found.begin()
    return found


def backward_of(use: ProbeUse | None) -> AbstractContextManager[None]:
    """Inside, the backward pass of that use runs in this thread."""
    return _BackwardOf(use)


class _BackwardOf(AbstractContextManager[None]):
    """This is no generator: one would take longer than everything that is done inside."""

    def __init__(self, use: ProbeUse | None) -> None:
        self._use = use

    def __enter__(self) -> None:
        _allowed.now = self._use is not None and self._use.end() and not torch.is_grad_enabled()

    def __exit__(self, *_: object) -> None:
        _allowed.now = False


def computed(moment: Callable[[], Tensor], *read: Tensor | None) -> Tensor:
    """What ``moment`` returns, computed from the tensors ``read``: beside what follows where that is wanted and possible."""
    given = tuple(tensor for tensor in read if tensor is not None)
    if _allowed.now and _state.streams.serves(given[0].device):
        return _state.streams.run(moment, given)
    return moment()
