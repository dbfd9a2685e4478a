"""Every Python block of README.md and docs/ runs, those of a page one after the other in one namespace.

A comment before a block says what it needs:

* ``<!-- not run: needs a GPU -->``: it cannot run here, and why.
* ``<!-- needs: timm -->``: packages without which it is skipped; ``make trainers`` has them.
* ``<!-- ranks: 1 -->``: what ``torchrun`` tells the processes that it starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integrations.conftest import timm as timm  # the package, also where its torchvision is of another torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|needs|ranks): (?P<what>[^\n]+?) -->\n+)?^```python[^\n]*\n(?P<code>.*?)^```", re.M | re.S
)


def blocks_of(page: Path) -> list[tuple[int, str, str | None, str]]:
    """The line, the code, the mark and what stands in it, of every block."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start("code")) + 1, match["code"], match["mark"], match["what"])
        for match in BLOCK.finditer(text)
    ]


def given() -> dict[str, Any]:
    """What examples suppose a reader has: a model, data and a loss."""
    torch.manual_seed(0)
    return {
        "build_model": lambda: nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)),
        "loader": [(torch.randn(8, 32), torch.randint(0, 4, (8,))) for _ in range(3)],
        "loss_fn": F.cross_entropy,
    }


PAGES_WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


def require(packages: str, request: pytest.FixtureRequest) -> None:
    """Skip the test where one of the packages is not installed."""
    for package in packages.split(", "):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; make trainers has it")
        if package == "timm":
            request.getfixturevalue("timm")


def start_ranks(ranks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the first of so many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = given()
    try:
        for line, code, mark, what in blocks_of(page):
            if mark == "not run":
                print(f"{page.name}:{line} is not run: {what}", file=sys.stderr)
                continue
            if mark == "needs":
                require(what, request)
            elif mark == "ranks":
                start_ranks(what, monkeypatch)
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)  # errors name the page's own lines
    finally:
        if torch.distributed.is_initialized():
            # Gloo's thread frees its last work a moment after that is done, with what the thread that began it had of Python's
            # objects. A group that ends before, and waits for the thread with Python's lock held, waits for ever.
            time.sleep(0.2)
            torch.distributed.destroy_process_group()


def test_every_block_is_found_and_every_exception_has_a_reason() -> None:
    """Fences of another form, or marks that stand elsewhere, would pass unseen."""
    for page in PAGES:
        text, found = page.read_text(), blocks_of(page)
        assert len(re.findall(r"^\s*(?:```+|~~~+)\s*(?:python|py)\b", text, re.M)) == len(found), page
        for name in ("not run", "needs", "ranks"):
            assert text.count(f"<!-- {name}") == sum(mark == name for _, _, mark, _ in found), (page, name)
    assert {page.name for page in PAGES_WITH_BLOCKS} >= {"README.md", "moments.md"}
