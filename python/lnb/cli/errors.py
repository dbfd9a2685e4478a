"""Errors that a user can cause, shown as one message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


class CommandError(Exception):
    """A command cannot do what it was asked for; the message is meant for the person who asked."""


@contextmanager
def reported(failure: type[Exception], *wrong_use: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """Turn the exceptions ``failure`` into exit code 1, and the exceptions ``wrong_use`` into exit code 2.

    Args:
        failure: exceptions that say that the body cannot do what was asked.
        wrong_use: what bad options raise in the body; other exceptions keep their traceback.
        interrupted: the message for Ctrl-C (exit code 130).
    """
    try:
        yield
    except failure as error:
        raise fail(str(error), FAILED) from error
    except wrong_use as error:
        raise fail(str(error), WRONG_USE) from error
    except KeyboardInterrupt as error:
        raise fail(interrupted, INTERRUPTED) from error


def fail(message: str, code: int) -> typer.Exit:
    """Print ``message`` to the error stream; the exception to raise for exit code ``code``."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), message))
    return typer.Exit(code)
