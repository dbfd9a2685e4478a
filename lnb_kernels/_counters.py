"""Counters by which the programs of a launch find out who is the last to arrive, zero between launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SMALLEST = 4096  # counters of a buffer

_buffers: dict[tuple[torch.device, int], torch.Tensor] = {}


def buffers() -> list[torch.Tensor]:
    """The counters that are kept, of all devices and streams: all zero between launches."""
    return list(_buffers.values())


@contextmanager
def arrival_counters(like: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """``count`` int32 counters on the device of ``like``, zero, for one launch on the current stream.

    Launches of one stream follow one another and leave the counters at zero, so they share one buffer, which is zeroed when it
    is made. A launch that a CUDA graph captures gets counters of the graph's own memory, zeroed by the graph: its replays
    may run beside any other stream, and nothing outside of the graph must outlive it. After an exception, when nobody knows what
    the counters hold, the buffer is given up.
    """
    device = like.device
    cuda = device.type == "cuda"
    if cuda and torch.cuda.is_current_stream_capturing():
        yield torch.zeros(count, dtype=torch.int32, device=device)
        return
    key = device, torch.cuda.current_stream(device).cuda_stream if cuda else 0
    buffer = _buffers.get(key)
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False):
            buffer = torch.zeros(max(_SMALLEST, 1 << (count - 1).bit_length()), dtype=torch.int32, device=device)
        _buffers[key] = buffer
    try:
        yield buffer
    except BaseException:
        _buffers.pop(key, None)
        raise
