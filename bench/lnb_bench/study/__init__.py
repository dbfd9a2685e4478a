"""Studies: many training runs described by one file, kept one by one, compared by the same measures, and reported."""

from __future__ import annotations

from lnb_bench.study.clocks import CLOCKS, clock_of
from lnb_bench.study.findings import Family, Findings, families, findings
from lnb_bench.study.groups import SuiteFamily
from lnb_bench.study.measures import Comparison, Row, compare
from lnb_bench.study.outcomes import Outcome, Store
from lnb_bench.study.profiles import Profile, load_profile
from lnb_bench.study.runner import Progress, run_suite
from lnb_bench.study.suite import Cell, Suite, SuiteError, SuiteTask
from lnb_bench.study.suite_file import load_suite

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
    "findings",
    "load_profile",
    "load_suite",
    "run_suite",
]
