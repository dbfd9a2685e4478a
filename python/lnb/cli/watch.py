"""``lnb watch``: the figures of every layer of a training, as they are logged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from lnb.cli.errors import CommandError
from lnb.cli.watch_table import SORTS, History, screen
from lnb.reports.watch_file import NAME, Tail


def run_watch(
    path: Path, interval: float, sort: str, once: bool, console: Console, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Show the latest record, and every later one until Ctrl-C.

    Args:
        path: the file, its folder, or a folder of such folders, of which the one that was written to last is shown.
        interval: seconds from one look at the file to the next.
        sort: which layers come first, one of :data:`lnb.cli.watch_table.SORTS`.
        once: show it once and return, as is done where the output is no terminal.
        console: where to show it.
        sleep: waits.

    Raises:
        ValueError: an argument is not allowed.
        CommandError: there is no such file, or it cannot be read.
    """
    if sort not in SORTS:
        raise ValueError(f"--sort {sort!r} must be one of {', '.join(SORTS)}")
    if not (math.isfinite(interval) and interval > 0):
        raise ValueError(f"--interval {interval!r} must be a number of seconds above 0")
    tail, history = Tail(_file(path)), History()
    _read(tail, history)
    if once or not console.is_terminal:
        console.print(screen(history, tail.path, sort, None))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(screen(history, tail.path, sort, console.height), refresh=True)
                sleep(interval)
                _read(tail, history)
        except KeyboardInterrupt:
            return


def _read(tail: Tail, history: History) -> None:
    try:
        history.add(tail.read())
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [path / NAME] if (path / NAME).is_file() else [file for file in path.glob(f"*/{NAME}") if file.is_file()]
    if not found:
        raise CommandError(
            f"PATH {str(path)!r}: there is no {NAME} in it, nor in a folder in it; "
            f"lnb.integrations.watch.Watch(optimizer, folder) writes one while a model trains"
        )
    return max(found, key=lambda file: file.stat().st_mtime)
