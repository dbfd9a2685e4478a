"""Checks of the entries of a suite file: each raises a :class:`lnb_bench.study.suite.SuiteError` that names the entry."""

from __future__ import annotations

import json
import math
from typing import Any

from lnb_bench.study.suite import SuiteError
from lnb_bench.training.records import is_count, is_number, shortened


def require_number(what: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> None:
    """Require a finite number above or of at least a bound."""
    number = is_number(value) and math.isfinite(value)
    if not number or value <= above or value < least:
        bound = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
        raise SuiteError(f"{what}={value!r} must be a finite number{bound}")


def check_keys(where: str, table: Any, known: tuple[str, ...]) -> None:
    """Require a table with known entries only."""
    if not isinstance(table, dict):
        raise SuiteError(f"{where} must be a table, not {table!r}")
    for key in table:
        if key not in known:
            raise SuiteError(f"{where}: unknown entry {key!r}; known are {', '.join(known)}")


def require_one_of(what: str, value: Any, known: tuple[str, ...]) -> None:
    """Require one of the ``known`` texts."""
    if not isinstance(value, str) or value not in known:
        raise SuiteError(f"{what}={shortened(value)} must be one of {', '.join(known)}")


def require_labels(where: str, name: str, labels: Any) -> None:
    """Require that the entry ``name`` is a list of labels, whatever they are."""
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise SuiteError(f"{where}: {name}={shortened(labels)} must be a list of labels")


_TYPES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}


def require_type(what: str, value: Any, type_name: str) -> None:
    """Require a value of a type that is given by name."""
    fits = {
        "bool": isinstance(value, bool),
        "int": is_count(value),
        "float": is_number(value),
        "str": isinstance(value, str),
    }[type_name]
    if not fits:
        raise SuiteError(f"{what}={shortened(value)} must be {_TYPES[type_name]}")


def require_plain(what: str, value: Any) -> None:
    """Require what JSON can hold: TOML knows dates too."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SuiteError(
            f"{what}={shortened(value)} must be made of finite numbers, texts, true, false and lists"
        ) from error
