"""Errors that a user can cause, shown as one message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.text import Text

from lnb_bench.training import TrainingError

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


@contextmanager
def reported(*wrong_use: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """Turn a :class:`TrainingError` into exit code 1, and the exceptions ``wrong_use`` into exit code 2.

    Args:
        wrong_use: what bad options raise in the body; other exceptions keep their traceback.
        interrupted: the message for Ctrl-C (exit code 130).
    """
    try:
        yield
    except TrainingError as error:
        raise fail(str(error), FAILED) from error
    except wrong_use as error:
        raise fail(str(error), WRONG_USE) from error
    except KeyboardInterrupt as error:
        raise fail(interrupted, INTERRUPTED) from error


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn every form of "no memory left" into a :class:`TrainingError` that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
            sign in text for sign in _NO_MEMORY
        ):
            raise
        raise TrainingError(
            f"there is not enough memory for this run ({text or type(error).__name__}); make the model (--width, --depth, "
            f"--context) or --batch-size smaller"
        ) from error


# How torch says it on a CPU, where it has no class for it.
_NO_MEMORY = ("allocate memory", "not enough memory", "size calculation overflowed", "unpacking long")


@contextmanager
def described_by(file: Path | None) -> Iterator[None]:
    """Name the ``file`` (None: there is none) that holds a run's options in the errors that they raise."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if file is None:
            raise
        raise TrainingError(f"{error} (the run's options stand in {file})") from error


@contextmanager
def unchecked_settings(settings: dict[str, Any] | None) -> Iterator[None]:
    """Turn what an optimizer raises in its steps into a message, where settings went to it that only it can check."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        if not settings:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise TrainingError(
            f"the run failed with the settings {given} ({type(error).__name__}: {error}); correct --set"
        ) from error


def fail(message: str, code: int) -> typer.Exit:
    """Print ``message`` to the error stream; the exception to raise for exit code ``code``."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), message))
    return typer.Exit(code)
