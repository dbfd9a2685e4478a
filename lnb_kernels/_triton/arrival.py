"""The last program of several to arrive: how one launch adds up what its programs left in a workspace.

A program stores its part, then counts itself in at a counter that all contributors share. Who finds that all others were
there before, and so sees their parts, adds them, in a fixed order whoever that is: results do not depend on the order in
which programs run. It also sets the counter back to zero, so that counters are zeroed once and serve every later launch
of the stream.

Programs never wait for one another, so a launch may have more of them than a GPU holds. Where many parts make one result,
the last program of each group of ``fan`` parts adds these, and the last of the groups adds the sums: one program reads
about ``2 sqrt(parts)`` of them, not all.

Memory model: the barrier orders the stores of all threads of a program before the increment by one of them, which
releases them to the whole GPU; the same increment acquires what earlier ones released, and the compiler broadcasts its
result behind another barrier. Parts are then read past the first-level cache, which other programs do not write.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

_SMALLEST = 4096  # counters of a buffer

_buffers: dict[tuple[torch.device, int], torch.Tensor] = {}


@triton.jit
def is_last(counter_ptr, programs):
    """Whether this program is the last of ``programs`` at ``counter``, which is then zero again."""
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


def fan_of(parts: int) -> int:
    """How many of ``parts`` the last program of a group adds: all of a few, else about their square root."""
    return parts if parts <= 4 else math.isqrt(parts - 1) + 1


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
