"""Kills a process at a chosen moment: at a line of the program, in the middle of a file's content, or at a time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("lnb", "lnb_bench", "lnb_kernels"))
# What runs inside these functions is a write or a resumption; every other line of the training is a step.
WRITES = {"append", "save", "save_checkpoint", "save_model", "describe", "write_atomically"}
RESUMES = {"rewind", "read_description"}
TRAINING = {"train_step", "records", "evaluate"}


def kill() -> None:
    """End this process as a failing machine would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Lines:
    """Calls ``act`` at the ``at``-th line of the packages that runs in a ``phase``: "step", "write" or "resume".

    Attributes:
        seen: how many lines ran in the phase so far.
    """

    def __init__(self, phase: str, at: int | None, act: Callable[[], None] = kill) -> None:
        self.phase, self.at, self.act = phase, at, act
        self.seen = 0
        self._current: list[str] = []

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        """The trace function for ``sys.settrace``."""
        name = frame.f_code.co_name
        if not any(package in frame.f_code.co_filename for package in PACKAGES):
            return None
        entered = "resume" if name in RESUMES else "write" if name in WRITES else "step" if name in TRAINING else None
        if entered is not None and not (self._current and self._current[-1] == "resume"):
            self._current.append(entered)
            return self._leaving
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and self._current and self._current[-1] == self.phase:
            self.seen += 1
            if self.seen == self.at:
                self.act()
        return self._line

    def _leaving(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "return":
            self._current.pop()
        else:
            self._line(frame, event, argument)
        return self._leaving

    def __enter__(self) -> Lines:
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


class EveryLine:
    """Calls ``act`` at the ``at``-th line of the packages that runs within it, whatever it is of.

    Attributes:
        seen: how many lines ran so far.
        where: file and line at which it acted.
        first: of every different line, as which it ran first.
    """

    def __init__(self, at: int | None, act: Callable[[], None]) -> None:
        self.at, self.act, self.seen, self.where = at, act, 0, ""
        self.first: dict[tuple[str, int], int] = {}

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not any(package in frame.f_code.co_filename for package in PACKAGES):
            return None
        if event == "line":
            self.seen += 1
            self.first.setdefault((frame.f_code.co_filename, frame.f_lineno), self.seen)
            if self.seen == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                self.act()
        return self._trace

    def __enter__(self) -> EveryLine:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


class _Torn:
    """A file that dies when part of its ``at``-th content is written."""

    def __init__(self, file: Any, of_all: list[int], at: int, share: float) -> None:
        self._file, self._of_all, self._at, self._share = file, of_all, at, share

    def write(self, content: Any) -> int:
        self._of_all[0] += 1
        if self._of_all[0] == self._at:
            self._file.write(content[: int(len(content) * self._share)])
            self._file.flush()
            kill()
        return int(self._file.write(content))

    def __enter__(self) -> _Torn:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def tear_write(at: int, share: float) -> None:
    """From now on, kill this process when it has written a ``share`` of its ``at``-th content to a file."""
    written = [0]
    opened, fdopened = Path.open, os.fdopen

    def open_torn(path: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        file = opened(path, mode, *arguments, **settings)
        return file if mode.startswith("r") else _Torn(file, written, at, share)

    def fdopen_torn(handle: int, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        file = fdopened(handle, mode, *arguments, **settings)
        return file if mode.startswith("r") else _Torn(file, written, at, share)

    Path.open = open_torn  # type: ignore[method-assign,assignment]
    os.fdopen = fdopen_torn  # type: ignore[assignment]
