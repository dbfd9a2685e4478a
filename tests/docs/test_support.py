"""The support page: what it lists is trained here, and it is the page that ``docs/tools/support.py`` makes of the tests."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from support_cells import LAYERS, PRECISIONS, Layer
from torch import Tensor, nn

import lnb

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> Any:
    """A script of ``docs/tools``."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(layer: Layer, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if layer.shape is None:
        return torch.randint(9, (4, 7), generator=generator)
    return (torch.randn(layer.shape, generator=generator) + 0.5).to(dtype)


def loss_of(model: nn.Module, x: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Targets pull every neuron another way, so that no gradient is made of rounding."""
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        out = model(x)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss: Tensor = (out.double() - 3 * target).square().mean()
    return loss


def step(model: nn.Module, x: Tensor, autocast: torch.dtype | None, master: bool) -> lnb.LNB:
    optimizer = lnb.LNB(model, master_weights=master)
    loss_of(model, x, autocast).backward()
    optimizer.step()
    return optimizer


def joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_trains(name: str, precision: str) -> None:
    """Its parameters change as those of a float64 copy do, up to the rounding of the precision."""
    layer, how = LAYERS[name], PRECISIONS[precision]
    torch.manual_seed(0)
    first = layer.make()
    x = inputs(layer, how.dtype)
    width = first(inputs(layer, torch.float32)).shape[-1]
    model = nn.Sequential(first, nn.Linear(width, width)).to(how.dtype)
    exact = copy.deepcopy(model).double()
    before = joined(first.parameters())
    optimizer = step(model, x, how.autocast, how.master)
    wide = x.double() if x.is_floating_point() else x
    start = loss_of(exact, wide, None)
    step(exact, wide, None, False)

    assert loss_of(model, x, how.autocast) < start
    assert next(iter(optimizer.coverage())).metric == layer.metric
    assert optimizer.diagnostics()["skipped_steps"] == 0
    expected = joined(exact[0].parameters()) - before
    error = joined(first.parameters()) - before - expected
    rounding = torch.finfo(how.dtype).eps * before.norm()  # of the parameters themselves, before and after
    assert error.norm() <= how.tolerance * expected.norm() + rounding


def test_the_page_is_made_of_the_tests() -> None:
    support = tool("support")
    assert support.PAGE.read_text() == support.page(), "run: python docs/tools/support.py"


def test_tables_of_data_are_those_of_the_data() -> None:
    tables = tool("tables")
    for page in tables.pages():
        assert page.read_text() == tables.filled(page.read_text()), "run: python docs/tools/tables.py"
