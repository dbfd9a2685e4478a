"""The arithmetic of docs/shards.md: the page has the table, and the moments are those of a real model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lnb

ROOT = Path(__file__).resolve().parents[2]


def scaling() -> Any:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "bench" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_table() -> None:
    assert scaling().table() in (ROOT / "docs" / "shards.md").read_text()


def test_moments_are_those_that_a_step_gathers() -> None:
    module = scaling()
    small = module.Transformer("small", 1, 160, 320, 160)
    layers = [nn.Linear(160, 160, bias=False), nn.Linear(160, 160, bias=False), nn.Linear(160, 320, bias=False)]
    model = nn.Sequential(*layers, nn.Linear(320, 160, bias=False))
    optimizer = lnb.LNB(model)
    model(torch.randn(8, 160)).sum().backward()
    optimizer.step()
    kept = sum(optimizer.state[layer.weight]["second_moment"].numel() * 4 for layer in model)
    assert kept == small.moment_bytes
