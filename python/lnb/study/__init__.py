"""Studies: many training runs described by one file, kept one by one, compared by the same measures, and reported."""

from __future__ import annotations

from lnb.study.measures import Comparison, Row, compare
from lnb.study.outcomes import Outcome, Store
from lnb.study.runner import Progress, run_suite
from lnb.study.suite import Cell, Suite, SuiteError, SuiteTask, load_suite

__all__ = [
    "Cell",
    "Comparison",
    "Outcome",
    "Progress",
    "Row",
    "Store",
    "Suite",
    "SuiteError",
    "SuiteTask",
    "compare",
    "load_suite",
    "run_suite",
]
