"""On which steps second moments are gathered, and from which rows."""

from __future__ import annotations

import math

_GOLDEN = (math.sqrt(5) - 1) / 2


def is_refresh_step(index: int, refresh_every: int) -> bool:
    """Whether step ``index`` (from 0) gathers second moments: every ``refresh_every``-th, and more often at first.

    Features change fastest in the first steps, so these are refreshed at the powers of two too: 0, 1, 2, 4, 8, ...
    """
    return index % refresh_every == 0 or (index < refresh_every and index & (index - 1) == 0)


def sample_start(index: int) -> float:
    """Where row sampling starts on step ``index``, in [0, 1).

    Multiples of the golden ratio modulo 1 fill the interval as evenly as any sequence does: over the steps every row counts
    equally often, and a run that is resumed reads the same rows.
    """
    return index * _GOLDEN % 1.0
