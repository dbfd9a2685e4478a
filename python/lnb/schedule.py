"""On which steps second moments are gathered."""

from __future__ import annotations


def is_refresh_step(index: int, refresh_every: int) -> bool:
    """Whether step ``index`` (from 0) gathers second moments: every ``refresh_every``-th, and more often at first.

    Features change fastest in the first steps, so these are refreshed at the powers of two too: 0, 1, 2, 4, 8, ...
    """
    return index % refresh_every == 0 or (index < refresh_every and index & (index - 1) == 0)
