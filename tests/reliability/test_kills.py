"""A killed training run, resumed, is the run that nobody killed; the full run of it is ``make reliability``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_end_as_the_whole_run(tmp_path: Path) -> None:
    from kills import campaign

    made = campaign(10, seed=1, folder=tmp_path)
    assert not made.differing
    assert sum(made.kills.values()) == 10
    assert made.completed >= 2
