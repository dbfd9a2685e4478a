"""The committed studies: whole, small, and told in ``docs/`` as the data have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lnb_bench.study import Findings, Store, Suite, findings, load_profile, load_suite
from lnb_bench.study.markdown import markdown
from lnb_bench.study.profiles import KINDS

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = {
    "study": "results",
    "peers": "results-peers",
    "protocol": "results-protocol",
    "ablations": "results-ablations",
}
SHORT_FORMS = {"protocol": "short", "ablations": "short"}
FINISHED = {  # docs/protocol.md names the others
    "protocol": [
        "diabetes",
        "diamonds",
        "burgers",
        "helmholtz",
        "digits",
        "mnist",
        "cifar10-resnet-small",
        "cifar10-vit-small",
        "camvid-small",
        "autoencoder-small",
        "gpt-small",
        "lora-small",
    ],
    "ablations": ["diabetes", "diamonds", "digits", "mnist", "gpt-small"],
}


@pytest.fixture(scope="module", params=DOCUMENTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def suite(name: str) -> Suite:
    folder = ROOT / "bench" / "suites"
    return load_suite(folder / f"{name}.toml", SHORT_FORMS.get(name)).only(FINISHED.get(name), None)


@pytest.fixture(scope="module")
def found(name: str, suite: Suite) -> Findings:
    """What the report is made of, from the data of the repository alone."""
    results = ROOT / "bench" / "results" / name
    profiles = [load_profile(results / f"{kind}.json") for kind in KINDS if name == "study"]
    return findings(suite, Store(results), profiles, _note(name))


def _note(name: str) -> str:
    """What the document says that it is, where the command that makes it says so."""
    page = ROOT / "docs" / "protocol.md" if name in SHORT_FORMS else ROOT / "bench" / "suites" / f"{name}.toml"
    text = page.read_text(encoding="utf-8")
    if name in SHORT_FORMS:
        text = text[text.index(f"bench/results/{name} --short") :]
    return text.split('--note "')[1].split('"')[0]


def test_every_task_is_finished_with_every_seed(name: str, suite: Suite, found: Findings) -> None:
    without_target = {task.label for task in found.untargeted}
    labels = [task.label for task in suite.tasks if task.label not in without_target]
    assert [comparison.task.label for comparison in found.comparisons] == labels
    assert without_target == ({"helmholtz"} if name == "protocol" else set())
    for comparison in found.comparisons:
        for row in comparison.rows:
            assert row.lr is None or len(row.runs) + row.failed >= len(suite.at(comparison.task).judged_seeds), (
                comparison.task.label,
                row.optimizer,
            )


def test_the_document_is_made_from_the_data(name: str, found: Findings) -> None:
    document = ROOT / "docs" / f"{DOCUMENTS[name]}.md"
    assert document.read_text(encoding="utf-8") == markdown(found, DOCUMENTS[name])


def test_the_data_are_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (ROOT / "bench" / "results" / name).iterdir()) < 3_000_000
