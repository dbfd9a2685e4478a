"""The committed studies: whole, small, and told in ``docs/`` as the data have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lnb_bench.study import Findings, Store, Suite, compare, families, load_profile, load_suite
from lnb_bench.study.markdown import markdown
from lnb_bench.study.profiles import KINDS

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = {"study": "results", "peers": "results-peers"}


@pytest.fixture(scope="module", params=DOCUMENTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def suite(name: str) -> Suite:
    return load_suite(ROOT / "bench" / "suites" / f"{name}.toml")


@pytest.fixture(scope="module")
def findings(name: str, suite: Suite) -> Findings:
    """What the report is made of, from the data of the repository alone."""
    results = ROOT / "bench" / "results" / name
    comparisons = tuple(compare(suite, Store(results)))
    profiles = tuple(load_profile(results / f"{kind}.json") for kind in KINDS if name == "study")
    return Findings(comparisons, tuple(families(suite, comparisons)), profiles)


def test_every_task_is_finished_with_every_seed(suite: Suite, findings: Findings) -> None:
    assert [comparison.task.label for comparison in findings.comparisons] == [task.label for task in suite.tasks]
    for comparison in findings.comparisons:
        for row in comparison.rows:
            assert row.lr is None or len(row.runs) + row.failed >= len(suite.seeds), (
                comparison.task.label,
                row.optimizer,
            )


def test_the_document_is_made_from_the_data(name: str, findings: Findings) -> None:
    document = ROOT / "docs" / f"{DOCUMENTS[name]}.md"
    assert document.read_text(encoding="utf-8") == markdown(findings, DOCUMENTS[name])


def test_the_data_are_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (ROOT / "bench" / "results" / name).iterdir()) < 3_000_000
