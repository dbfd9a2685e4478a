"""The schema of the state against the state itself, in every route: keys, shapes, dtypes, owners and bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer.small_models import MODES, batches, mixed, train
from torch import nn

import lnb
from lnb.planning.memory import other_bytes, state_bytes
from lnb.state.schema import (
    OPTIMIZER_ENTRIES,
    SCHEMA,
    Kind,
    Owner,
    allowed_shapes,
    is_rounded,
    planned_bytes,
    planned_entries,
    required_keys,
)

SETTINGS: dict[str, dict[str, Any]] = {
    **MODES,
    "averaged": {"preset": "paper", "refresh_every": 2, "b_s": 0.5},
    "arrow": {"preset": "paper", "solver": "arrow", "others": "adamw"},
    "small blocks": {"block_size": 4, "b_s": 0.5},
    "unbounded": {"max_relative_change": None, "damping": "none"},
    "spectral": {"trust_region": "spectral"},
    "masters": {"master_weights": True},
}


def split(model: nn.Module, optimizer: lnb.LNB) -> list[tuple[nn.Parameter, Any, bool]]:
    """Every parameter with the layer that it moves with, and whether it is that layer's weight."""
    layers = {p: block for block in optimizer._inventory.layers for p in block.parameters}
    return [(p, layers.get(p), p in layers and layers[p].weight is p) for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SETTINGS)
def test_the_state_is_what_the_schema_plans(case: str, dtype: torch.dtype) -> None:
    model = mixed().to(dtype)
    optimizer = lnb.LNB(model, **SETTINGS[case])
    train(model, optimizer, batches(2))
    for parameter, block, weight in split(model, optimizer):
        state = optimizer.state[parameter]
        planned = {
            key: (entry, shape) for key, entry, shape in planned_entries(parameter, block, optimizer.config, weight)
        }
        assert state.keys() == planned.keys()
        for key, (entry, shape) in planned.items():
            assert tuple(state[key].shape) == shape, key
            assert state[key].dtype == entry.kind.dtype(parameter), key
            assert shape in allowed_shapes(key, parameter, block, optimizer.config), key
        held = sum(value.numel() * value.element_size() for value in state.values())
        assert held == planned_bytes(parameter, block, optimizer.config, weight)
        assert required_keys(parameter, block if weight else None, optimizer.config) <= state.keys()


@pytest.mark.parametrize("case", SETTINGS)
def test_the_plans_bytes_are_the_schemas(case: str) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **SETTINGS[case])
    train(model, optimizer, batches(1))
    plan = optimizer.plan()
    of_layers = {row.layer: row.state_bytes for row in plan}
    for block in optimizer._inventory.layers:
        held = sum(v.numel() * v.element_size() for p in block.parameters for v in optimizer.state[p].values())
        assert of_layers[block.name] == state_bytes(block, optimizer.config) == held
    norm = model[4].weight
    assert plan.other_bytes == 2 * other_bytes(norm, optimizer.config)


def test_owners() -> None:
    """Entries of a layer stand with its weight alone; those of the optimizer in no parameter's state."""
    model = mixed()
    optimizer = lnb.LNB(model, damping="agreement", b_s=0.5)
    train(model, optimizer, batches(2))
    of_layers = {key for key, entry in SCHEMA.items() if entry.owner is Owner.LAYER}
    for parameter, _, weight in split(model, optimizer):
        assert bool(of_layers & optimizer.state[parameter].keys()) is weight
        assert all(allowed_shapes(key, parameter, None, optimizer.config) == [] for key in of_layers)
    saved = optimizer.state_dict()
    assert set(saved) - {"state", "param_groups"} == {*OPTIMIZER_ENTRIES}


def test_every_key_is_made_by_some_setting() -> None:
    seen: set[str] = set()
    for settings in SETTINGS.values():
        model = mixed().bfloat16()
        optimizer = lnb.LNB(model, **settings)
        train(model, optimizer, batches(1))
        seen |= {key for state in optimizer.state.values() for key in state}
    model = nn.Linear(3, 2)
    optimizer = lnb.LNB(model)
    for _ in range(2):
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step(loss=1.0)
    seen |= optimizer.state[model.weight].keys()
    assert seen == set(SCHEMA)


def test_only_statistics_follow_a_parameters_precision() -> None:
    assert not is_rounded("step")
    assert not is_rounded("row_square")
    assert is_rounded("momentum")
    assert {key for key in SCHEMA if not is_rounded(key)} == {
        key for key, entry in SCHEMA.items() if entry.kind in (Kind.COUNT, Kind.WIDE)
    }


def test_a_key_of_a_layer_in_another_parameters_state_is_refused() -> None:
    model = mixed()
    optimizer = lnb.LNB(model)
    train(model, optimizer, batches(1))
    saved = optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    saved["state"][names.index("4.weight")]["weight_norm"] = torch.ones(())
    with pytest.raises(
        ValueError, match=r"'weight_norm' of parameter '4.weight' has shape \(\), this optimizer needs none"
    ):
        optimizer.load_state_dict(saved)
