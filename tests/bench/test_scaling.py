"""The arithmetic of docs/shards.md: the page has the table, and the moments are those of a real model."""

from __future__ import annotations

import importlib.util
import math
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
    into = [nn.Linear(160, 160, bias=False) for _ in range(4)] + [nn.Linear(160, 320, bias=False) for _ in range(2)]
    model = nn.ModuleList([*into, nn.Linear(320, 160, bias=False)])
    optimizer = lnb.LNB(model)
    model[-1](sum(layer(torch.randn(8, 160)) for layer in into[4:])).sum().backward()
    sum(layer(torch.randn(8, 160)).sum() for layer in into[:4]).backward()
    optimizer.step()
    kept = [optimizer.state[layer.weight]["second_moment"].shape for layer in model]
    triangles = sum(math.prod(shape[:-1]) * (shape[-1] + 1) // 2 for shape in kept)
    assert 4 * triangles == small.moment_bytes
