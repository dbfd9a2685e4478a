"""What training is timed by."""

from __future__ import annotations

import time
from collections.abc import Callable

# Processor time of one thread is not disturbed by other processes, and on a quiet machine it is the wall-clock time.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK_WORDS = {"wall": "wall-clock time", "cpu": "processor time"}


def clock_of(name: str, threads: int | None) -> Callable[[], float]:
    """The clock that the options ``--clock`` and ``--threads`` (None: as torch has it) choose.

    Raises:
        ValueError: there is no such clock, or it would not tell the speed of so many threads.
    """
    if name not in CLOCKS:
        raise ValueError(f"--clock {name}: must be one of {', '.join(CLOCKS)}")
    if name == "cpu" and threads != 1:
        raise ValueError(
            "--clock cpu adds up the time of all threads, which says nothing of speed: give --threads 1 too"
        )
    return CLOCKS[name]
