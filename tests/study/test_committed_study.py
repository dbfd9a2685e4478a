"""The committed study: whole, small, and told in ``docs/results.md`` as the data have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lnb.study import Findings, Store, compare, families, load_profile, load_suite
from lnb.study.markdown import markdown
from lnb.study.profiles import KINDS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "study"


@pytest.fixture(scope="module")
def findings() -> Findings:
    """What the report is made of, from the data of the repository alone."""
    suite = load_suite(ROOT / "bench" / "suites" / "study.toml")
    comparisons = tuple(compare(suite, Store(RESULTS)))
    profiles = tuple(load_profile(RESULTS / f"{kind}.json") for kind in KINDS)
    return Findings(comparisons, tuple(families(suite, comparisons)), profiles)


def test_every_task_is_finished_with_every_seed(findings: Findings) -> None:
    suite = load_suite(ROOT / "bench" / "suites" / "study.toml")
    assert [comparison.task.label for comparison in findings.comparisons] == [task.label for task in suite.tasks]
    for comparison in findings.comparisons:
        for row in comparison.rows:
            assert row.lr is None or len(row.runs) + row.failed >= len(suite.seeds), (
                comparison.task.label,
                row.optimizer,
            )


def test_the_document_is_made_from_the_data(findings: Findings) -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == markdown(findings, "results")


def test_the_data_are_small() -> None:
    assert sum(file.stat().st_size for file in RESULTS.iterdir()) < 2_000_000
