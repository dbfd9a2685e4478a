"""One process at a time in a folder of results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lnb.reading import read_text, reason
from lnb_bench.training.errors import TrainingError
from lnb_bench.training.files import write_atomically

LOCK, HOLDER = ".lnb.lock", ".lnb.holder"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if it does not exist, while the body runs.

    The operating system holds the lock for the process, so a process that is killed leaves none behind. The process number
    for the message stands in a file of its own, because some versions of filelock empty the file that they lock.

    Raises:
        TrainingError: another process works in the folder, or the folder cannot be written.
    """
    holder = folder / HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise TrainingError(
            f"{folder}: another process ({_who(holder)}) works in this folder; wait until it ends, or choose another --out"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise TrainingError(
            f"{folder}: cannot be written or locked ({reason(error)}); choose an --out on a disk that allows both"
        ) from error
    try:
        try:
            write_atomically(holder, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise TrainingError(f"{holder}: cannot be written ({reason(error)})") from error
        yield
    finally:
        with suppress(OSError):  # the folder has become read-only: the lock is what counts
            holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        return f"pid {int(read_text(holder, 64))}"
    except (OSError, ValueError):
        return "its pid is not known"
