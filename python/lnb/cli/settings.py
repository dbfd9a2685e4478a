"""Settings of an optimizer as a command line writes them: ``NAME=VALUE``."""

from __future__ import annotations

import ast
import json
from typing import Any

import torch


def parse_settings(assignments: list[str]) -> dict[str, Any] | None:
    """``["ridge=1.0", "solver=arrow"]`` as a dict; values are Python literals, or else strings. None for no settings.

    Raises:
        ValueError: one is no assignment.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set {assignment!r} must be NAME=VALUE, such as ridge=1.0")
        settings[name] = _literal(text)
        try:
            json.dumps(settings[name])
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"--set {assignment!r}: the value must be made of numbers, texts, True, False, None, lists and dicts"
            ) from error
    return settings or None


def with_dtypes(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of ``lnb.LNB`` with a dtype in place of its name: a command line and a TOML file have no dtypes."""
    name = settings.get("moment_dtype")
    if not isinstance(name, str):
        return settings
    return {**settings, "moment_dtype": getattr(torch, name.removeprefix("torch."), name)}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what literal_eval raises
        return text
