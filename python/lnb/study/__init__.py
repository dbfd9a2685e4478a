"""Studies: many training runs described by one file, kept one by one, compared by the same measures, and reported."""

from __future__ import annotations

from lnb.study.clocks import CLOCKS, clock_of
from lnb.study.findings import Family, Findings, families
from lnb.study.measures import Comparison, Row, compare
from lnb.study.outcomes import Outcome, Store
from lnb.study.profiles import Profile, load_profile
from lnb.study.runner import Progress, run_suite
from lnb.study.suite import Cell, Suite, SuiteError, SuiteFamily, SuiteTask
from lnb.study.suite_file import load_suite

__all__ = [
    "CLOCKS",
    "Cell",
    "Comparison",
    "Family",
    "Findings",
    "Outcome",
    "Profile",
    "Progress",
    "Row",
    "Store",
    "Suite",
    "SuiteError",
    "SuiteFamily",
    "SuiteTask",
    "clock_of",
    "compare",
    "families",
    "load_profile",
    "load_suite",
    "run_suite",
]
