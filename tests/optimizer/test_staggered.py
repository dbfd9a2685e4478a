"""Refreshes spread over the steps of a cycle: a slice of the layers each, the same in a run that is resumed."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

import lnb
from lnb.statistics import schedule
from lnb.statistics.schedule import is_refresh_step, refresh_phases


def deep(layers: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(6, 6), nn.Tanh())))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these layers were worth slices of their own."""
    monkeypatch.setitem(schedule.LEAST_SLICE, "cpu", 1)


def train(model: nn.Module, optimizer: lnb.LNB, steps: range) -> list[set[str]]:
    """Train; the layers that each step refreshes."""
    refreshed = []
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(12, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        due = {b.name for b in optimizer._inventory.layers if any(c.moments is not None for c in b.captures)}
        refreshed.append(due)
        optimizer.step()
    return refreshed


def test_every_layer_is_refreshed_once_per_cycle_and_all_at_first() -> None:
    model = deep()
    optimizer = lnb.LNB(model, lr=0.01, refresh_every=5)
    refreshed = train(model, optimizer, range(25))
    everything = {str(2 * i) for i in range(7)}
    assert [step for step in range(5) if refreshed[step] == everything] == [0, 1, 2, 4]
    assert refreshed[3] == set()
    for begin in (5, 10, 15, 20):
        cycle = refreshed[begin : begin + 5]
        assert Counter(name for due in cycle for name in due) == dict.fromkeys(everything, 1)
        assert all(1 <= len(due) <= 2 for due in cycle)
        assert cycle == refreshed[5:10]


def test_a_resumed_run_refreshes_alike() -> None:
    model = deep()
    optimizer = lnb.LNB(model, lr=0.01, refresh_every=5)
    train(model, optimizer, range(8))
    other = copy.deepcopy(model)
    twin = lnb.LNB(lnb.detach(other), lr=0.01, refresh_every=5)
    twin.load_state_dict(optimizer.state_dict())
    assert train(model, optimizer, range(8, 20)) == train(other, twin, range(8, 20))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_without_it_all_come_together() -> None:
    model = deep()
    refreshed = train(model, lnb.LNB(model, lr=0.01, refresh_every=5, staggered=False), range(16))
    assert [step for step, due in enumerate(refreshed) if due] == [0, 1, 2, 4, 5, 10, 15]


def test_slices_are_of_about_equal_work() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 96), nn.Linear(96, 96), nn.Linear(96, 6), nn.Linear(6, 6))
    optimizer = lnb.LNB(model)
    layers = [(block, optimizer.config) for block in optimizer._inventory.layers]
    phases = refresh_phases(layers)
    assert phases == sorted(phases)
    assert len(set(phases[1:4])) == 3  # the large ones do not share a step
    assert all(0 <= phase < 10 for phase in phases)


def test_small_models_have_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schedule.LEAST_SLICE, "cpu", 2**27)
    optimizer = lnb.LNB(deep())
    assert refresh_phases([(block, optimizer.config) for block in optimizer._inventory.layers]) == [0] * 7


def test_steps_of_a_phase() -> None:
    assert [i for i in range(30) if is_refresh_step(i, 10, 3)] == [0, 1, 2, 4, 8, 13, 23]


def test_a_setting_that_is_no_bool() -> None:
    with pytest.raises(TypeError, match="staggered=3 must be True or False"):
        lnb.LNB(deep(), staggered=3)
