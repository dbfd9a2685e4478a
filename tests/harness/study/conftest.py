"""The small study as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_study import SUITE


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path
