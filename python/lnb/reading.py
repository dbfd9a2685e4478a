"""Reading files that anybody may have replaced or damaged, without ever waiting, and in no more memory than is allowed."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

# Far above what the project writes, and far below what would exhaust a machine's memory.
LONGEST_TEXT = 1 << 28
_DEEPEST = 100  # lists and objects within each other
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')  # strings, and the brackets outside of them


def read_bytes(path: Path, longest: int | None = None) -> bytes:
    """The content of a regular file.

    A named pipe would keep a reader waiting for ever, and a device has no end, so both are refused.

    Args:
        path: the file; symbolic links are followed.
        longest: bytes that the file may have; None for any number.

    Raises:
        OSError: the file cannot be opened, is not a regular file, or is too long.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer. Regular files ignore the flag; Windows has none.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    with os.fdopen(handle, "rb") as file:
        if longest is None:
            return file.read()
        content = file.read(longest + 1) if status.st_size <= longest else b""
        if status.st_size > longest or len(content) > longest:
            raise OSError(errno.EFBIG, f"it has more than the {longest} bytes that are allowed here", str(path))
        return content


def read_text(path: Path, longest: int = LONGEST_TEXT) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: the file is not UTF-8.
    """
    return read_bytes(path, longest).decode("utf-8")


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """A JSON text as Python values.

    Args:
        text: the text, UTF-8 where it is bytes.
        finite: refuse ``NaN`` and ``Infinity``.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.
    """
    if isinstance(text, bytes):  # json.loads would guess UTF-16 and UTF-32 too
        text = text.decode("utf-8")
    if _depth(text) > _DEEPEST:  # where a program has raised Python's recursion limit, the parser overflows the stack
        raise ValueError("it is nested too deeply")
    try:
        return json.loads(text, parse_constant=_refuse) if finite else json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _depth(text: str) -> int:
    """How deeply lists and objects of a JSON text are nested."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return 0
    depth = deepest = 0
    for mark in _MARKS.findall(text):
        depth += 1 if mark in "[{" else -1 if mark in "]}" else 0
        deepest = max(deepest, depth)
    return deepest


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def reason(error: Exception) -> str:
    """What an error says, without the number and the file name of an :class:`OSError`: the message of the caller names the
    file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
