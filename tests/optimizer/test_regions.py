"""Both trust regions of a step, that of functions and that of weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import batches, copied, mixed, same, snapshot, train
from torch import Tensor, nn

import lnb
from lnb import trust_regions

DAMPINGS: dict[str, dict[str, Any]] = {
    "none": {"damping": "none"},
    "agreement": {},
    "agreement-global-pcg": {
        "preset": "paper",
        "damping": "agreement",
        "max_relative_change": 2.5,
    },
    "gain": {"preset": "full_batch"},
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12, bias=False), nn.Tanh(), nn.Linear(12, 2))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def regression(seed: int, rows: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 8, generator=generator)
    return x, 3 * torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    optimizer.zero_grad()
    x, y = regression(seed)
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss.detach()


def taken_back(optimizer: lnb.LNB, weight: Tensor) -> Tensor:
    """The weight, without the growth that a refresh takes back before it makes a step."""
    growth = optimizer.state[weight].get("growth", torch.zeros(()))
    return (weight.detach().double() * (1 + 2 * growth).rsqrt()).clone()


@pytest.mark.parametrize("lr", [0.02, 0.1, 0.7])
@pytest.mark.parametrize("damping", ["none", "agreement"])
@pytest.mark.parametrize("region", trust_regions.names())
def test_no_layer_changes_by_more_than_its_share(region: str, damping: str, lr: float) -> None:
    model = network()
    optimizer = lnb.LNB(model, lr, trust_region=region, damping=damping, refresh_every=1)
    reached = 0.0
    for seed in range(8):
        backward(model, optimizer, seed)
        weights = [layer.weight for layer in linear_layers(model)]
        before = [taken_back(optimizer, weight) for weight in weights]
        optimizer.step()
        for old, weight in zip(before, weights, strict=True):
            usual = math.sqrt(weight.shape[0] / 3)
            change = (weight.detach().double() - old).norm().item() / max(old.norm().item(), usual)
            assert change <= min(2.5 * lr, 0.25) * (1 + 1e-4)
            assert change > 0
            reached = max(reached, change)
    assert region == "rms" or reached > 0.05 * min(2.5 * lr, 0.25)  # the bound is near, and not met by standing still


@pytest.mark.parametrize("lr", [0.01, 0.1])
@pytest.mark.parametrize("damping", ["none", "agreement"])
@pytest.mark.parametrize("region", ["global", "layer", "neuron", "two_sided"])
def test_no_output_changes_by_more_than_lr(region: str, damping: str, lr: float) -> None:
    """The root mean square change that a layer's step makes on the rows of the step's own second moment."""
    model = network()
    settings: dict[str, Any] = {"trust_region": region, "damping": damping, "refresh_every": 1, "b_s": 0.0}
    optimizer = lnb.LNB(model, lr, min_norm=1e-12, **settings)
    inputs: dict[nn.Module, Tensor] = {}
    for layer in linear_layers(model):
        layer.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0].detach().double()}))
    for seed in range(6):
        backward(model, optimizer, seed)
        layers = linear_layers(model)
        before = [
            (taken_back(optimizer, layer.weight), None if layer.bias is None else layer.bias.detach().double().clone())
            for layer in layers
        ]
        optimizer.step()
        squares = []
        for layer, (weight, bias) in zip(layers, before, strict=True):
            change = inputs[layer] @ (layer.weight.detach().double() - weight).mT
            if bias is not None:
                change = change + (layer.bias.detach().double() - bias)
            squares.append(change.square().mean(0))
        if region == "global":
            found = [torch.stack([square.sum() for square in squares]).sum()]
        elif region == "layer":
            found = [square.sum() for square in squares]
        else:
            found = [square.max() for square in squares]
        assert max(value.sqrt().item() for value in found) <= lr * (1 + 1e-3)


@pytest.mark.parametrize("region", trust_regions.names())
def test_layers_that_start_at_zero_move(region: str) -> None:
    model = network()
    last = linear_layers(model)[-1]
    nn.init.zeros_(last.weight)
    optimizer = lnb.LNB(model, 0.1, trust_region=region)
    first = backward(model, optimizer, 0)
    optimizer.step()
    assert 0 < last.weight.detach().norm().item() <= 0.25 * math.sqrt(2 / 3) * (1 + 1e-5)
    for _ in range(30):
        loss = backward(model, optimizer, 0)
        optimizer.step()
    assert loss < 0.9 * first


@pytest.mark.parametrize("settings", [{}, {"preset": "full_batch"}], ids=str)
@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_lr_of_zero_moves_nothing(zero: float | Tensor, settings: dict[str, Any]) -> None:
    model = network()
    before = copied(dict(model.named_parameters()))
    optimizer = lnb.LNB(model, zero, **settings)
    for seed in range(12):
        backward(model, optimizer, seed)
        optimizer.step()
    assert same(copied(dict(model.named_parameters())), before)
    assert optimizer.diagnostics() == {"steps": 12, "skipped_steps": 0}


@pytest.mark.parametrize("damping", DAMPINGS)
def test_a_rate_in_a_tensor_is_the_same_rate(damping: str) -> None:
    models = []
    for lr in (0.125, torch.tensor(0.125)):
        model = network()
        optimizer = lnb.LNB(model, lr, **DAMPINGS[damping])
        for seed in range(12):
            backward(model, optimizer, seed)
            optimizer.step()
        models.append(copied(dict(model.named_parameters())))
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("lr", [0.1, 0.3])
def test_a_deep_plain_network_does_not_run_away(lr: float) -> None:
    """Twenty layers without a residual: moves of all layers compound."""
    torch.manual_seed(2)
    layers: list[nn.Module] = [nn.Linear(8, 64), nn.ReLU()]
    for _ in range(18):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 2))
    for layer in linear_layers(model):
        nn.init.kaiming_normal_(layer.weight)
    optimizer = lnb.LNB(model, lr)
    losses = []
    for seed in range(100):
        losses.append(backward(model, optimizer, seed).item())
        optimizer.step()
    assert all(map(math.isfinite, losses))
    assert sum(losses[-10:]) / 10 < losses[0]
    assert optimizer.diagnostics() == {"steps": 100, "skipped_steps": 0}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "masters"])
@pytest.mark.parametrize("damping", DAMPINGS)
def test_resumes_bit_for_bit(damping: str, kind: str) -> None:
    def made() -> tuple[nn.Module, lnb.LNB]:
        model = mixed() if kind == "float32" else mixed().to(torch.bfloat16)
        return model, lnb.LNB(model, **DAMPINGS[damping], master_weights=kind == "masters")

    model, optimizer = made()
    train(model, optimizer, batches(6))
    resumed, other = made()
    resumed.load_state_dict(copied(model.state_dict()))
    other.load_state_dict(copied(optimizer.state_dict()))
    assert same(snapshot(resumed, other), snapshot(model, optimizer))
    for net, opt in ((model, optimizer), (resumed, other)):
        train(net, opt, batches(7, seed=9))
    assert same(snapshot(resumed, other), snapshot(model, optimizer))


@pytest.mark.parametrize("damping", ["agreement", "gain"])
def test_gradients_that_float64_cannot_square_leave_finite_state(damping: str) -> None:
    model = network().double()
    settings = DAMPINGS[damping]
    optimizer = lnb.LNB(model, **settings)

    def step(factor: float, seed: int) -> float:
        optimizer.zero_grad()
        x, y = (value.double() for value in regression(seed))
        loss = F.mse_loss(model(x), y)
        (loss * factor).backward()
        optimizer.step()
        return loss.item()

    for seed, factor in enumerate((1.0, 1e200, 1.0, 1.0)):
        step(factor, seed)
    assert all(bool(value.isfinite().all()) for state in optimizer.state.values() for value in state.values())
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    other = lnb.LNB(model, **settings)
    other.load_state_dict(copied(optimizer.state_dict()))


@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("refresh_every", [5, 100])
def test_growth_is_taken_back_at_refreshes(refresh_every: int, masters: bool) -> None:
    """Even that of many long steps: weights get shorter, and do not turn around."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if masters else torch.float32
    layer = nn.Linear(8, 16, dtype=dtype)
    start = layer.weight.detach().norm().item()
    settings: dict[str, Any] = {"momentum": 0.0, "nesterov": False, "damping": "none", "b_s": 0.0}
    optimizer = lnb.LNB(layer, 0.5, refresh_every=refresh_every, master_weights=masters, **settings)
    generator = torch.Generator().manual_seed(1)

    def noise() -> None:
        optimizer.zero_grad()
        x = torch.randn(64, 8, generator=generator).to(dtype)
        (layer(x) * torch.randn(64, 16, generator=generator)).mean().backward()
        optimizer.step()

    def weight() -> Tensor:
        found: Tensor = optimizer.state[layer.weight]["master"] if masters else layer.weight.detach()
        return found.clone()

    for _ in range(refresh_every):
        noise()
    before, growth = weight(), optimizer.state[layer.weight]["growth"].item()
    assert growth > 0
    optimizer.param_groups[0]["lr"] = 0.0
    if refresh_every == 5:
        for _ in range(6):  # with a refresh among them: lr=0 moves nothing
            noise()
        assert torch.equal(weight(), before)
        assert optimizer.state[layer.weight]["growth"].item() == growth
        for _ in range(4):
            noise()
    optimizer.param_groups[0]["lr"] = 1e-20
    noise()  # a refresh, on which nothing else moves
    torch.testing.assert_close(weight(), before / math.sqrt(1 + 2 * growth))
    assert torch.equal(layer.weight.detach(), weight().to(dtype))
    assert optimizer.state[layer.weight]["growth"].item() < 1e-30
    assert 0.5 * start < layer.weight.detach().norm().item() < 2 * start


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"damping": "half"}, ValueError, "damping='half' must be one of none, agreement, gain"),
        ({"damping": "gain"}, ValueError, "trust_region='two_sided' must be 'global' or 'layer'"),
        ({"max_relative_change": 0.0}, ValueError, "max_relative_change=0.0 must be in (0, inf)"),
        ({"max_relative_change": "2"}, TypeError, "max_relative_change='2' must be a number"),
        ({"sample_ridge": -1.0}, ValueError, "sample_ridge=-1.0 must be in [0, inf)"),
        ({"data_ridge": -1.0}, ValueError, "data_ridge=-1.0 must be in [0, inf)"),
        ({"output_ridge": -1.0}, ValueError, "output_ridge=-1.0 must be in [0, inf)"),
        ({"b_rows": 1.0}, ValueError, "b_rows=1.0 must be in [0, 1)"),
        ({"preset": "slow"}, ValueError, "preset='slow' must be one of paper, fast, full_batch"),
    ],
    ids=str,
)
def test_errors_name_the_setting(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        lnb.LNB(nn.Linear(3, 2), **settings)
    assert words in str(raised.value)


def test_a_preset_brings_its_rate() -> None:
    for preset, lr in (("fast", 0.4), ("full_batch", 1.0), ("paper", 0.1)):
        assert lnb.LNB(nn.Linear(3, 2), preset=preset).param_groups[0]["lr"] == lr
