"""Why LNB loses, as a table: the measured reason, and the figures that it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lnb_bench.study.reasons import LARGER, Reason

HEADERS = (
    "task", "lost to", "steps", "time per step", "steps, metric of every step", f"steps, batches x{LARGER}", "reason",
)  # fmt: skip
NOTE = (
    "For every clear loss in time: LNB's steps to the target and its time per step, in units of the other's. Where it needs "
    "more steps, it was run again with a metric of every step, and both were run with batches "
    f"{LARGER} times as large, at the same settings and seeds. The reason is 'cost' where LNB needs no more steps, 'drift' or "
    "'noise' where that change takes its steps to at most the other's; 'none of these' where neither does."
)


def reason_table(reasons: Sequence[Reason]) -> list[tuple[str, ...]]:
    """A line per loss in the order of :data:`HEADERS`."""
    return [
        (r.task, r.other, _shown(r.steps), _shown(r.cost), _shown(r.fresh), _shown(r.large), r.reason) for r in reasons
    ]


def _shown(ratio: float) -> str:
    return "" if math.isnan(ratio) else "never" if math.isinf(ratio) else f"{ratio:.2f}"
