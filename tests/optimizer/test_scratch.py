"""The memory that a step works in: taken once on the CPU, and in no way a part of the state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import lnb
from lnb_kernels import _native

WEIGHTS = [96 * 64, 80 * 96, 48 * 80]  # entries


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 80, bias=False), nn.Tanh(), nn.Linear(80, 48), nn.Tanh()
    )


def kept_of(optimizer: lnb.LNB) -> dict[nn.Parameter, torch.Tensor]:
    """By parameter, what the optimizer works in."""
    return {p: kept for scratch in optimizer._memory.scratch.values() for p, kept in scratch._kept.items()}


def backward(net: nn.Module, optimizer: lnb.LNB, seed: int = 0) -> None:
    optimizer.zero_grad()
    net(torch.randn(32, 64, generator=torch.Generator().manual_seed(seed))).square().mean().backward()


def train(net: nn.Module, optimizer: lnb.LNB, seeds: range) -> None:
    for seed in seeds:
        backward(net, optimizer, seed)
        optimizer.step()


def largest_allocation(optimizer: lnb.LNB) -> int:
    """Bytes of the largest tensor that a step makes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        optimizer.step()
    return max(event.self_cpu_memory_usage for event in record.events() or ())


@pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
def test_a_step_between_refreshes_makes_no_tensor_of_a_weights_size() -> None:
    net = model()
    optimizer = lnb.LNB(net, lr=0.01)
    train(net, optimizer, range(6))
    backward(net, optimizer)
    assert largest_allocation(optimizer) < 4 * min(WEIGHTS)
    # The measure sees such tensors where they are made: in a first step.
    net = model()
    optimizer = lnb.LNB(net, lr=0.01)
    backward(net, optimizer)
    assert largest_allocation(optimizer) >= 4 * min(WEIGHTS)


def test_memory_follows_the_parameters_that_move() -> None:
    net = model()
    optimizer = lnb.LNB(net, lr=0.01)
    train(net, optimizer, range(2))
    kept = kept_of(optimizer)
    assert set(kept) == set(net.parameters())
    net[0].requires_grad_(False)
    train(net, optimizer, range(2, 4))
    assert set(kept_of(optimizer)) == set(net[2].parameters()) | set(net[4].parameters())
    assert kept_of(optimizer)[net[2].weight] is kept[net[2].weight]
    net[0].requires_grad_(True)
    train(net, optimizer, range(4, 6))
    assert set(kept_of(optimizer)) == set(net.parameters())


def test_other_regions_and_float64_keep_what_they_need() -> None:
    net = model()
    optimizer = lnb.LNB(net, lr=0.01, preset="paper")
    train(net, optimizer, range(2))
    assert kept_of(optimizer) == {}
    net = model().double()
    optimizer = lnb.LNB(net, lr=0.01)
    optimizer.zero_grad()
    net(torch.randn(32, 64, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    assert {kept.dtype for kept in kept_of(optimizer).values()} == {torch.float64}


def test_a_copy_works_in_memory_of_its_own() -> None:
    net = model()
    optimizer = lnb.LNB(net, lr=0.01)
    train(net, optimizer, range(3))
    twin_net, twin = copy.deepcopy((net, optimizer))
    assert kept_of(twin) == {}
    backward(net, optimizer, 3)
    train(twin_net, twin, range(3, 5))  # between another's backward pass and its step
    optimizer.step()
    train(net, optimizer, range(4, 5))
    for ours, theirs in zip(net.parameters(), twin_net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    own = {tensor.data_ptr() for tensor in kept_of(optimizer).values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in kept_of(twin).values())


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_the_plan_announces_it(preset: str) -> None:
    net = model()
    optimizer = lnb.LNB(net, lr=0.01, preset=preset)
    planned = optimizer.plan()
    train(net, optimizer, range(2))
    kept = sum(tensor.numel() * tensor.element_size() for tensor in kept_of(optimizer).values())
    assert planned.scratch_bytes == kept
    assert ("to work in" in str(planned)) == (preset == "fast")


def test_no_part_of_the_state() -> None:
    net = model()
    optimizer = lnb.LNB(net, lr=0.01)
    train(net, optimizer, range(2))
    memory = {tensor.data_ptr() for tensor in kept_of(optimizer).values()}
    saved = optimizer.state_dict()["state"]
    assert all(
        value.data_ptr() not in memory
        for state in saved.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
