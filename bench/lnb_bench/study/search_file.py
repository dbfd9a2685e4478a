"""The part of a suite file that says what trials vary."""

from __future__ import annotations

from typing import Any

from lnb_bench.study.search import Knob
from lnb_bench.study.suite import SuiteError
from lnb_bench.study.suite_checks import check_keys, require_number, require_plain
from lnb_bench.training.records import is_number, shortened


def read_search(where: str, search: Any) -> dict[str, Knob]:
    """The table ``search`` of an optimizer: by name, a range or a list of choices.

    Raises:
        SuiteError: an entry has no meaning.
    """
    if not isinstance(search, dict) or "lr" not in search:
        raise SuiteError(f"{where}: search={shortened(search)} must be a table with at least lr")
    return {name: _knob(f"{where}: search.{name}", name, entry) for name, entry in search.items()}


def _knob(where: str, name: str, entry: Any) -> Knob:
    least = {"warmup": 0.0, "weight_decay": 0.0, "lr": 0.0}.get(name)
    if isinstance(entry, list):
        require_plain(where, entry)
        if not entry:
            raise SuiteError(f"{where}=[] must have at least one choice")
        for choice in entry if least is not None else ():
            _require_inside(where, name, choice)
        return Knob(choices=tuple(entry))
    check_keys(where, entry, ("low", "high", "log"))
    low, high, log = entry.get("low"), entry.get("high"), entry.get("log", False)
    if not isinstance(log, bool):
        raise SuiteError(f"{where}: log={shortened(log)} must be true or false")
    for bound in (low, high):
        if least is None:
            require_number(where, bound)
        else:
            _require_inside(where, name, bound)
    if not low < high or (log and low <= 0):
        raise SuiteError(f"{where}: low={low!r} must be below high={high!r}, and above 0 with log")
    return Knob(float(low), float(high), log)


def _require_inside(where: str, name: str, value: Any) -> None:
    """Require what a rate, a warm-up or a weight decay can be."""
    if name == "lr":
        require_number(where, value, above=0)
    else:
        require_number(where, value, least=0)
    if name == "warmup" and is_number(value) and value >= 1:
        raise SuiteError(f"{where}={value!r} must be below 1: it is a share of the steps")
