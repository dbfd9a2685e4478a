"""Killing a run in its midst, as a machine that fails would."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def kill_once(reached: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
    """Kill ``process`` as soon as it has ``reached`` something; fail if it ends before, or has not in so many seconds."""
    deadline = time.monotonic() + seconds
    try:
        while not reached():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run did not get so far"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
