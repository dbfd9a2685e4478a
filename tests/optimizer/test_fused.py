"""Fused steps against the usual ones: the same results, from the first step on and through whatever happens between steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import lnb
from lnb_kernels import fused_step


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Steps on the CPU are fused, as on a GPU; the ops run as plain PyTorch."""
    monkeypatch.setattr(fused_step, "available", lambda device: True)
    return monkeypatch


class Net(nn.Module):
    """Convolutions with and without groups and bias, layers of several blocks, attention, norms and a scale of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 8, 3, 2, 1, groups=2, bias=False)
        )
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide = nn.Linear(8, 24)
        self.head = nn.Linear(24, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.convs(x).flatten(2).mT)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.head(torch.tanh(self.wide(y)).mean(1)) * self.scale


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def backward(model: nn.Module, optimizer: lnb.LNB, seed: int) -> None:
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 2, 6, 6, generator=generator), torch.randn(16, 3, generator=generator)
    dtype = next(model.parameters()).dtype
    nn.functional.mse_loss(model(x.to(dtype)).float(), y).backward()


def train(model: nn.Module, optimizer: lnb.LNB, seeds: range) -> None:
    for seed in seeds:
        backward(model, optimizer, seed)
        optimizer.step()


def made(model: nn.Module, **settings: Any) -> lnb.LNB:
    return lnb.LNB(model, **{"lr": 0.05, "block_size": 12, "products": "tf32x3", "weight_decay": 0.01, **settings})


def assert_alike(one: nn.Module, other: nn.Module, tolerance: float = 2e-4) -> None:
    for (name, x), (_, y) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance * float(x.abs().max())), (name, (x - y).abs().max())


@pytest.mark.parametrize("settings", [
    {}, {"nesterov": False}, {"staggered": False, "refresh_every": 3}, {"master_weights": True}, {"others_lr": 1.0},
])  # fmt: skip
def test_steps_are_those_of_the_usual_form(fused: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    mine = net()
    optimizer = made(mine, **settings)
    train(mine, optimizer, range(14))
    assert all("row_square" in optimizer.state[layer.weight] for layer in (mine.wide, mine.head))
    fused.setattr(fused_step, "available", lambda device: False)
    usual = net()
    other = made(usual, **settings)
    train(usual, other, range(14))
    assert_alike(mine, usual)
    for key in ("weight_norm", "growth", "radius", "row_square", "second_moment", "output_moment", "momentum", "step"):
        x, y = (chosen.state[model.wide.weight][key] for chosen, model in ((optimizer, mine), (other, usual)))
        assert torch.allclose(x, y, rtol=1e-2, atol=1e-4), key


def test_the_stages_are_the_fused_ones(fused: pytest.MonkeyPatch) -> None:
    calls = []
    usual = fused_step.direct_layers_

    def noted(*args: Any) -> None:
        calls.append(len(args[0]))
        usual(*args)

    fused.setattr(fused_step, "direct_layers_", noted)
    model = net()
    train(model, made(model), range(3))
    assert calls == [6, 6, 6]  # two convolutions, two projections of attention, two layers


def moved(model: Net, optimizer: lnb.LNB) -> None:
    """Other code gives states other memory, as ``module._apply`` does."""
    for state in optimizer.state.values():
        for value in state.values():
            value.data = value.data.clone()


def reloaded(model: Net, optimizer: lnb.LNB) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def frozen_bias(model: Net, optimizer: lnb.LNB) -> None:
    assert model.wide.bias is not None
    model.wide.bias.requires_grad_(not model.wide.bias.requires_grad)


def frozen_layer(model: Net, optimizer: lnb.LNB) -> None:
    model.wide.requires_grad_(not model.wide.weight.requires_grad)


def rate_on_the_host(model: Net, optimizer: lnb.LNB) -> None:
    optimizer.param_groups[0]["lr"] = torch.tensor(0.04)


@pytest.mark.parametrize("change", [moved, reloaded, frozen_bias, frozen_layer, rate_on_the_host])
def test_what_happens_between_steps_is_followed(fused: pytest.MonkeyPatch, change: Any) -> None:
    results = []
    for available in (True, False):
        fused.setattr(fused_step, "available", lambda device, available=available: available)
        model = net()
        optimizer = made(model, refresh_every=3)
        for steps in (range(4), range(4, 6), range(6, 10)):
            train(model, optimizer, steps)
            change(model, optimizer)
        results.append(model)
    assert_alike(*results, tolerance=1e-3)


def test_images_with_their_channels_last(fused: pytest.MonkeyPatch) -> None:
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = net()
        model.convs.to(memory_format=memory_format)
        train(model, made(model), range(5))
        results.append(model)
    assert_alike(*results)


def test_a_layer_whose_inputs_cannot_be_squared_stands_still(fused: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = lnb.LNB(model, products="tf32x3")
    before = [parameter.clone() for parameter in model.parameters()]
    model(torch.full((8, 3), 1e25)).square().mean().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[2])


@pytest.mark.parametrize("masters", [True, False])
def test_layers_of_several_dtypes(masters: bool, fused: pytest.MonkeyPatch) -> None:
    """Neighbours of one dtype are served together."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            kinds = [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
            self.layers = nn.ModuleList([nn.Linear(4, 4, bias=i != 1, dtype=kind) for i, kind in enumerate(kinds)])
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x.to(layer.weight.dtype)))
            return x.float() * self.scale

    counts: list[int] = []
    direct = fused_step.direct_layers_

    def counted(*arguments: Any) -> None:
        counts.append(len(arguments[0]))
        direct(*arguments)

    fused.setattr(fused_step, "direct_layers_", counted)
    results: list[list[list[torch.Tensor]]] = []
    for available in (True, False):
        fused.setattr(fused_step, "available", lambda device, available=available: available)
        model = Mixed()
        optimizer = lnb.LNB(model, products="tf32x3", master_weights=masters)
        results.append([])
        for seed in range(4):
            optimizer.zero_grad()
            x, y = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(seed)).unbind()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            results[-1].append([parameter.detach().float() for parameter in model.parameters()])
        assert counts == [1, 2, 1] * 4
    # One step from one model rounds to 16 bits; so do the passes of later ones, which the steps magnify.
    for step, tolerance in ((0, 4e-3), (3, 5e-2)):
        for one, other in zip(*(of_steps[step] for of_steps in results), strict=True):
            assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())
