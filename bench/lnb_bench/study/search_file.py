"""The parts of a suite file that say what trials vary, and what variants are compared."""

from __future__ import annotations

from typing import Any

from lnb_bench.study.groups import SuiteQuestion
from lnb_bench.study.search import Knob
from lnb_bench.study.suite import SuiteError, check_labels
from lnb_bench.study.suite_checks import check_keys, require_labels, require_number, require_plain
from lnb_bench.training.records import is_count, is_number, shortened

MOST_TRIALS = 10_000


def read_search(where: str, search: Any) -> dict[str, Knob]:
    """The table ``search`` of an optimizer: by name, a range or a list of choices.

    Raises:
        SuiteError: an entry has no meaning.
    """
    if not isinstance(search, dict) or "lr" not in search:
        raise SuiteError(f"{where}: search={shortened(search)} must be a table with at least lr")
    return {name: _knob(f"{where}: search.{name}", name, entry) for name, entry in search.items()}


def read_trials(trials: Any) -> int:
    """How many trials every optimizer has.

    Raises:
        SuiteError: it is no such number.
    """
    if not is_count(trials) or trials > MOST_TRIALS:
        raise SuiteError(f"trials={shortened(trials)} must be a whole number of at least 0 and at most {MOST_TRIALS}")
    return int(trials)


def read_question(label: str, entry: dict[str, Any], optimizers: list[str]) -> SuiteQuestion:
    """The table ``[questions.LABEL]``.

    Raises:
        SuiteError: an entry has no meaning, or names an optimizer that is not one of ``optimizers``.
    """
    where = f"[questions.{label}]"
    check_keys(where, entry, ("optimizers", "note"))
    chosen, note = entry.get("optimizers"), entry.get("note", "")
    if not isinstance(chosen, list) or len(chosen) < 2:
        raise SuiteError(f"{where}: optimizers={shortened(chosen)} must be a list of at least two optimizers")
    require_labels(where, "optimizers", chosen)
    check_labels(where, chosen, optimizers)
    if not isinstance(note, str):
        raise SuiteError(f"{where}: note={shortened(note)} must be a text")
    return SuiteQuestion(label, tuple(chosen), note)


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
