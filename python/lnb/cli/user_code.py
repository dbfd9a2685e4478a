"""Functions of the user's that a command line names as ``module:function``: found, called, and their errors explained."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import lnb_kernels
from lnb.cli.errors import CommandError


def load(option: str, text: str) -> Any:
    """What ``text``, such as ``my_package.models:build``, names; the working directory is searched first.

    Args:
        option: the option or argument that ``text`` was given for, for messages.
        text: module and name within it, with a colon between them.

    Raises:
        ValueError: the form is wrong, or there is no such module or name.
        CommandError: the module raises an exception when it is imported.
    """
    module_name, _, path = text.partition(":")
    if module_name.endswith(".py") or os.sep in module_name:
        raise ValueError(
            f"{option} {text!r}: {module_name!r} is a file; give the name under which Python imports it, such as "
            f"{Path(module_name).stem}:{path or 'build'}"
        )
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise ValueError(f"{option} {text!r} must be MODULE:FUNCTION, such as my_package.models:build")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with explained(f"{option} {text!r}: importing {module_name}"):
            found: Any = importlib.import_module(module_name)
    except CommandError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{module_name}.".startswith(f"{cause.name}."):
            raise ValueError(
                f"{option} {text!r}: there is no module {cause.name!r} in {folder} or among the installed packages; run the "
                f"command in the folder that holds it, or name that folder in PYTHONPATH"
            ) from error
        raise
    for name in path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), 1)
            remedy = f"did you mean {near[0]!r}?" if near else "give the name of a function or a class in it"
            raise ValueError(f"{option} {text!r}: {module_name} has no {name!r}; {remedy}")
        found = getattr(found, name)
    return found


def call(option: str, text: str, function: Any) -> Any:
    """The result of ``function``, which :func:`load` found, called without arguments.

    Raises:
        ValueError: it is not callable, or needs arguments.
        CommandError: it raises an exception.
    """
    if not callable(function):
        raise ValueError(f"{option} {text!r} is of type {type(function).__name__}; it must be a function or a class")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        signature = inspect.Signature()
    try:
        signature.bind()
    except TypeError as error:
        raise ValueError(
            f"{option} {text!r} cannot be called without arguments ({error}); name a function that passes them"
        ) from error
    with explained(f"{option} {text!r}"):
        return function()


@contextmanager
def explained(what: str, remedy: str = "") -> Iterator[None]:
    """Turn what the user's code raises into a :class:`CommandError` that says what was raised, and where.

    Args:
        what: what was done, the start of the message.
        remedy: what to do about it, the end of the message.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        end = f"; {remedy}" if remedy else ""
        raise CommandError(f"{what} raised {type(error).__name__}: {error}{_place(error)}{end}") from error


_NOT_THE_USERS = (
    *(str(Path(package.__file__ or "").parent) + os.sep for package in (torch, lnb_kernels, importlib)),
    str(Path(__file__).parents[1]) + os.sep,  # lnb
    "<frozen ",
)


def _place(error: BaseException) -> str:
    """The innermost line of the user's own code that was running, in parentheses."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THE_USERS)
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
