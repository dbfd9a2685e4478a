"""Every Python block of README.md and docs/ runs, those of a page one after the other in one namespace.

A block that cannot run here is marked in its page by a comment before it that says why: ``<!-- not run: needs a GPU -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?^```python[^\n]*\n(?P<code>.*?)^```", re.M | re.S)


def blocks_of(page: Path) -> list[tuple[int, str, str | None]]:
    """The line, the code and the reason not to run of every block."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start("code")) + 1, match["code"], match["reason"]) for match in BLOCK.finditer(text)
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


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = given()
    for line, code, reason in blocks_of(page):
        if reason is not None:
            print(f"{page.name}:{line} is not run: {reason}", file=sys.stderr)
            continue
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)  # errors name the page's own lines


def test_every_block_is_found_and_every_exception_has_a_reason() -> None:
    """Fences of another form, or marks that stand elsewhere, would pass unseen."""
    for page in PAGES:
        text, found = page.read_text(), blocks_of(page)
        assert len(re.findall(r"^\s*(?:```+|~~~+)\s*(?:python|py)\b", text, re.M)) == len(found), page
        assert text.count("<!-- not run") == sum(reason is not None for _, _, reason in found), page
    assert {page.name for page in PAGES_WITH_BLOCKS} >= {"README.md", "moments.md"}
