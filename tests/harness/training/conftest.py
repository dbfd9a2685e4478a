"""Fixtures of the training tests: the real data where it is, and a tiny task for everything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lnb_bench.training import Task
from lnb_bench.training.data.splits import VectorSplit
from lnb_bench.training.objectives import LeastSquares


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets."""
    named = os.environ.get("LNB_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"NO REAL DATA: LNB_DATA is not set and {folder} does not exist; the readers stay untested on it")
    return folder


@pytest.fixture
def tiny_task() -> Task:
    """Regression of 50 rows of 5 values to 3, by two linear layers with a tanh between them."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 5, generator=generator)
    split = VectorSplit(x, torch.sin(x @ torch.randn(5, 3, generator=generator)))

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))

    return Task("tiny", split, split, build, LeastSquares(), batch_size=8, steps=30)
