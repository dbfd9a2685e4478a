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

import triton
import triton.language as tl

from lnb_kernels._counters import arrival_counters, buffers

__all__ = ["arrival_counters", "buffers", "fan_of", "is_last"]


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
