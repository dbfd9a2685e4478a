"""A disk that fills up ends the run by a clear error and costs nothing; the full run is ``make reliability``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_on_a_full_disk(tmp_path: Path) -> None:
    from full_disk import campaign

    result = campaign(4, seed=3, folder=tmp_path)
    assert result["failures"] == []
    assert result["ended_by_an_error"] >= 2
