"""Layers of one input keep one second moment and one factor: less memory, and the very steps of layers that keep their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer.small_models import equal_parameters
from optimizer.test_shared_moments import Model, batch
from torch import Tensor

import lnb
from lnb.statistics.shared_state import SHARED

Pair = tuple[Model, lnb.LNB]
EVERY = 3  # steps from one refresh to the next


def train(pair: Pair, steps: range, parts: int = 1) -> Pair:
    model, optimizer = pair
    for step in steps:
        optimizer.zero_grad()
        for part in range(parts):
            model(batch(10 * step + part)).sin().square().mean().backward()
        optimizer.step()
    return pair


def replaced(pair: Pair) -> Pair:
    """As trainers do that move states."""
    for state in pair[1].state.values():
        for key, value in state.items():
            state[key] = value.clone()
    return pair


def moved(pair: Pair) -> Pair:
    for state in pair[1].state.values():
        for value in state.values():
            value.data = value.data.clone()
    return pair


def loaded(pair: Pair) -> Pair:
    """In another process."""
    model = Model()
    model.load_state_dict(pair[0].state_dict())
    optimizer = lnb.LNB(model, params=groups(model), refresh_every=EVERY)
    optimizer.load_state_dict(copy.deepcopy(pair[1].state_dict()))
    return model, optimizer


def frozen(pair: Pair) -> Pair:
    """The last of three, for longer than a refresh takes."""
    pair[0].v.requires_grad_(False)
    train(pair, range(20, 20 + EVERY + 2))
    pair[0].v.requires_grad_(True)
    return pair


def without_bias(pair: Pair) -> Pair:
    """The metric of ``gate`` alone is that of the weight."""
    pair[0].gate.bias.requires_grad_(False)
    return pair


def other_ridge(pair: Pair) -> Pair:
    pair[1].param_groups[1]["ridge"] = 0.9
    return pair


def accumulated(pair: Pair) -> Pair:
    return train(pair, range(20, 20 + EVERY + 1), parts=3)


def groups(model: Model) -> list[dict[str, Any]]:
    """``up`` has one of its own."""
    own = set(model.up.parameters())
    return [{"params": [p for p in model.parameters() if p not in own]}, {"params": list(own)}]


def places(pair: Pair) -> set[tuple[str, ...]]:
    """Which layers hold one memory."""
    found: dict[int, list[str]] = {}
    for name in ("q", "k", "v", "gate", "up"):
        state = pair[1].state[getattr(pair[0], name).weight]
        held = {id(state[key].untyped_storage()._cdata): state[key].data_ptr() for key in SHARED if key in state}
        found.setdefault(next(iter(held.values())), []).append(name)
    return {tuple(names) for names in found.values()}


WHOLE = {("q",), ("k", "v"), ("gate", "up")}  # q has no bias, and so another metric


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (lambda pair: pair, WHOLE),
        (copy.deepcopy, WHOLE),
        (replaced, WHOLE),
        (moved, WHOLE),
        (loaded, WHOLE),
        (accumulated, WHOLE),
        (frozen, {("q",), ("k",), ("v",), ("gate", "up")}),
        (without_bias, {("q",), ("k", "v"), ("gate",), ("up",)}),
        (other_ridge, {("q",), ("k", "v"), ("gate",), ("up",)}),
    ],
)
@pytest.mark.parametrize("prepared", [True, False])
def test_steps_and_states_are_those_of_layers_that_keep_their_own(
    change: Callable[[Pair], Pair], after: set[tuple[str, ...]], prepared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not prepared:
        monkeypatch.setattr("lnb.step.prepare", lambda *_: None)
    found: list[Pair] = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr("lnb.statistics.shared_state.hold_the_same", lambda *_: False)
        model = Model()
        pair = train((model, lnb.LNB(model, params=groups(model), refresh_every=EVERY)), range(5))
        assert places(pair) == (WHOLE if together else {(name,) for name in ("q", "k", "v", "gate", "up")})
        pair = train(change(pair), range(5, 6 + 2 * EVERY))
        assert not together or places(pair) == after
        found.append(pair)
    assert equal_parameters(found[0][0], found[1][0])
    states = [pair[1].state_dict()["state"] for pair in found]
    for own, other in zip(*(state.values() for state in states), strict=True):
        assert own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) for key in own)


def test_states_that_differ_stay_apart_and_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    pair = train((model, lnb.LNB(model, refresh_every=EVERY)), range(4))
    saved = pair[1].state_dict()
    saved["state"] = copy.deepcopy(saved["state"])
    number = [name for name, _ in model.named_parameters()].index("v.weight")
    saved["state"][number]["second_moment"] *= 1.5
    pair[1].load_state_dict(saved)
    compared: list[tuple[Tensor, Tensor]] = []
    equal = torch.equal
    monkeypatch.setattr(
        "lnb.statistics.shared_state.torch.equal", lambda a, b: (compared.append((a, b)), equal(a, b))[1]
    )
    train(pair, range(4, 4 + EVERY))
    assert places(pair) == {("q",), ("k",), ("v",), ("gate", "up")}
    assert len(compared) == 1 + len(SHARED)  # k and v differ in the first, gate and up in none
    train(pair, range(4 + EVERY, 4 + 3 * EVERY))
    assert len(compared) == 1 + len(SHARED)
