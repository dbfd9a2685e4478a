"""What shortens steps inside the trust regions: the agreement of gradients, and the gain of the last steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lnb
from lnb import damping, step
from lnb.damping import FLOOR, NOISE_SHRINK


def linear_loss(signs: list[Tensor], **settings: Any) -> tuple[nn.Linear, lnb.LNB]:
    """Steps on a layer whose gradients are ``signs`` times one matrix, wherever its weights are."""
    torch.manual_seed(3)
    layer, x, c = nn.Linear(6, 5), torch.randn(30, 6), torch.randn(30, 5)
    optimizer = lnb.LNB(layer, 0.1, **settings)
    for sign in signs:
        optimizer.zero_grad()
        (layer(x) * c * sign).mean().backward()
        optimizer.step()
    return layer, optimizer


def test_gradients_that_are_all_the_same_agree() -> None:
    signs = [torch.ones(())] * 15
    agreed, optimizer = linear_loss(signs)
    free, _ = linear_loss(signs, damping="none")
    assert optimizer.state[agreed.weight]["radius"].item() == 1
    torch.testing.assert_close(agreed.weight, free.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agreed.bias, free.bias, rtol=1e-4, atol=1e-5)


def test_layers_share_a_region_at_first() -> None:
    """The first gradient is the only one, as long as noise: it lets radii grow by half of a tenth."""
    for layers, radius in ((1, 1.0), (4, 0.5 * 1.05), (25, 0.2 * 1.05)):
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
        optimizer = lnb.LNB(model)
        model(torch.randn(10, 3)).square().mean().backward()
        optimizer.step()
        assert [optimizer.state[layer.weight]["radius"].item() for layer in model] == pytest.approx([radius] * layers)


def test_a_gradient_that_is_far_longer_than_others_does_not_look_like_agreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After independent gradients, one that is 30 times as long: its step is no longer than theirs."""
    generator = torch.Generator().manual_seed(1)
    usual = [torch.randn(30, 5, generator=generator) for _ in range(40)]
    before, _ = linear_loss(usual)
    steps = []
    for size in (1.0, 30.0):
        after, _ = linear_loss([*usual, size * torch.randn(30, 5, generator=torch.Generator().manual_seed(2))])
        steps.append((after.weight - before.weight).norm().item())
    assert steps[1] < 1.5 * steps[0]


def test_gradients_that_point_back_shrink_the_radius() -> None:
    alternating = [torch.tensor((-1.0) ** t) for t in range(40)]
    layer, optimizer = linear_loss(alternating, nesterov=False)
    radius = optimizer.state[layer.weight]["radius"].item()
    assert radius == pytest.approx(FLOOR)
    layer, optimizer = linear_loss([*alternating, *[torch.ones(())] * 60], nesterov=False)
    assert optimizer.state[layer.weight]["radius"].item() > 2 * radius  # and it grows again


def test_at_first_radii_grow_as_far_as_gradients_agree() -> None:
    """To the whole region where they do; by half of a tenth where they are noise, not at all where each turns half round."""
    generator = torch.Generator().manual_seed(1)
    turning = torch.tensor([[math.cos(2 * t), math.sin(2 * t)] for t in range(1, 20)])
    radii = []
    for gradients in (torch.ones(19, 2), torch.randn(19, 2000, generator=generator), turning):
        layers = nn.ModuleList(nn.Linear(1, gradients.shape[1], bias=False) for _ in range(16))
        optimizer = lnb.LNB(layers, nesterov=False)
        for gradient in gradients:
            optimizer.zero_grad()
            sum(((layer(torch.ones(1, 1)) * gradient).sum() for layer in layers), torch.zeros(())).backward()
            optimizer.step()
        radii.append(optimizer.state[layers[0].weight]["radius"].item())
    assert radii[0] == 1
    assert radii[1] == pytest.approx(0.25 * 1.05**19, rel=0.15)
    assert radii[2] < 0.3


@pytest.mark.parametrize("prepared_steps", [True, False])
def test_below_noise_radii_grow_again_but_for_layers_that_see_data(
    prepared_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a twentieth where coherence is near a half."""
    if not prepared_steps:
        monkeypatch.setattr(step, "prepare", lambda *_: None)
    grown = {}
    for coherence in (0.25, 0.43, 0.7):
        torch.manual_seed(3)
        model, x, c = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5)), torch.randn(30, 6), torch.randn(30, 5)
        optimizer = lnb.LNB(model, 1e-6, momentum=0.5)
        for t in range(1, 32):
            if t == 31:  # this step's own ratio adds two hundredths
                for layer in model:
                    optimizer.state[layer.weight]["radius"].fill_(0.5)
                    optimizer.state[layer.weight]["coherence"].fill_(coherence * (1 - damping.COHERENCE_DECAY**30))
            optimizer.zero_grad()
            (model(x) * c).mean().backward()
            optimizer.step()
        grown[coherence] = [optimizer.state[layer.weight]["radius"].item() / 0.5 for layer in model]
    assert grown[0.25] == grown[0.7] == [1, 1]
    assert grown[0.43] == pytest.approx([1, damping.RECOVER])


def test_a_gradient_that_turns_round_shrinks_the_radius_of_the_default() -> None:
    layer, optimizer = linear_loss([torch.ones(())] * 15)
    assert optimizer.state[layer.weight]["radius"].item() == 1
    turned = [torch.ones(())] * 15 + [-torch.ones(())] * 5
    layer, optimizer = linear_loss(turned)
    assert optimizer.state[layer.weight]["radius"].item() < 0.9


def test_steps_of_gradients_that_alternate_are_short() -> None:
    """By ``a``: the default's average of them is 0.15 of the gradient, that of independent ones 0.27."""
    even, odd = ([torch.tensor((-1.0) ** t) for t in range(steps)] for steps in (40, 41))
    moved = []
    for rule in ("agreement", "none"):
        settings: dict[str, Any] = {"damping": rule, "trust_region": "neuron", "max_relative_change": None}
        before, _ = linear_loss(even, **settings)
        after, _ = linear_loss(odd, **settings)
        moved.append((after.weight - before.weight).detach().norm().item())
    assert 0 < moved[0] < 0.2 * moved[1]


@pytest.mark.parametrize("signal", [0.0, 0.5])
def test_noise_shrinks_the_radius_to_its_floor_and_a_signal_in_it_does_not(signal: float) -> None:
    generator = torch.Generator().manual_seed(1)
    common = signal * torch.randn(30, 5, generator=generator)
    radii = []
    for steps in (40, 300):
        layer, optimizer = linear_loss([common + torch.randn(30, 5, generator=generator) for _ in range(steps)])
        radii.append(optimizer.state[layer.weight]["radius"].item())
    if signal:
        assert radii == [1.0, 1.0]
    else:
        assert radii[0] > 0.5  # at first it opens, whatever the gradients
        assert FLOOR * NOISE_SHRINK <= radii[1] < 0.25


def fitted(seed: int) -> tuple[float, list[float]]:
    """The last losses of a smooth function's regression without noise, to the end of a cosine, and the layers' radii."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = lnb.LNB(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    losses = []
    for _ in range(500):
        x = torch.rand(64, 6)
        y = torch.sin(3 * x[:, 0] * x[:, 1]) + 2 * (x[:, 2] - 0.5) ** 2 + x[:, 3]
        optimizer.zero_grad()
        loss = (model(x).squeeze(1) - y).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    radii = [optimizer.state[layer.weight]["radius"].item() for layer in model if isinstance(layer, nn.Linear)]
    return sum(losses[-50:]) / 50, radii


@pytest.mark.parametrize("seed", [0, 1])
def test_no_layer_stands_still_because_another_goes_back_and_forth(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients oppose each other in all layers, whichever of them makes them do so."""
    loss, radii = fitted(seed)
    assert min(radii) >= FLOOR
    monkeypatch.setattr(damping, "FLOOR", 1e-4)
    without, still = fitted(seed)
    assert min(still) < 0.01  # the test's problem is one where it matters
    assert loss < 0.7 * without


def test_without_momentum_nothing_is_taken_for_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    layer, optimizer = linear_loss([torch.randn(30, 5, generator=generator) for _ in range(60)], momentum=0.0)
    assert optimizer.state[layer.weight]["radius"].item() == 1.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("condition", [1e1, 1e8])
@pytest.mark.parametrize("of", ["inputs", "target"])
def test_full_batch_solves_a_factorisation_whatever_the_condition(of: str, condition: float, seed: int) -> None:
    """The condition number of the inputs' second moment, or of the matrix that is factorised."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def orthogonal(rows: int) -> Tensor:
        q: Tensor = torch.linalg.qr(torch.randn(rows, 6, dtype=torch.float64, generator=generator))[0]
        return q

    values = torch.logspace(0, -math.log10(condition), 6, dtype=torch.float64)
    if of == "inputs":
        x = orthogonal(1000) * math.sqrt(1000) * values.sqrt()
        target = torch.randn(10, 6, dtype=torch.float64, generator=generator)
    else:
        x = torch.randn(1000, 6, dtype=torch.float64, generator=generator)
        target = orthogonal(10) * values @ orthogonal(6).mT
    y = x @ target.mT
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 10, bias=False)).double()
    optimizer = lnb.LNB(model, preset="full_batch")
    for _ in range(60):
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum(1).mean()).backward()
        optimizer.step()
    error = (model(x) - y).norm() / y.norm()
    assert error < 1e-6


def last_layer(unseen: list[Tensor]) -> float:
    """The radius of a layer whose gradients agree in the one input that is large, and are ``unseen`` in 63 that are small.

    Of the gradients' squares the small inputs have half, and of the steps', which the metric makes of them, nearly all.
    """
    torch.manual_seed(3)
    layer = nn.Linear(64, 16, bias=False)
    optimizer = lnb.LNB(layer)
    scales = torch.full((64,), 0.1)
    scales[0] = 8.0
    for rest in unseen:
        optimizer.zero_grad()
        layer(torch.randn(256, 64) * scales).mean().backward()
        layer.weight.grad = torch.cat([torch.ones(16, 1), rest / rest.norm(dim=1, keepdim=True)], dim=1)
        optimizer.step()
    return float(optimizer.state[layer.weight]["radius"].item())


@pytest.mark.parametrize("form", ["tables", "general"])
def test_steps_that_go_back_and_forth_where_gradients_agree_are_short(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that agree in what the metric takes out of the steps hide it; the weights' norm does not."""
    if form == "general":
        monkeypatch.setattr("lnb.step.prepare", lambda *_: None)
    generator = torch.Generator().manual_seed(1)
    one = torch.randn(16, 63, generator=generator)
    alternating = [one * (-1) ** t for t in range(45)]
    assert last_layer(alternating) < 1.5 * FLOOR
    assert last_layer([one] * 45) == 1
    assert last_layer([torch.randn(16, 63, generator=generator) for _ in range(45)]) == 1  # noise makes weights longer


@pytest.mark.parametrize("form", ["tables", "general"])
def test_units_of_data_make_no_difference(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs a million times as small, with weights that undo it: the same function after every step, to rounding."""
    if form == "general":
        monkeypatch.setattr("lnb.step.prepare", lambda *_: None)
    outputs = []
    for unit in (1.0, 2.0**-20):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        with torch.no_grad():
            model[0].weight.mul_(2 / unit)  # well above the least norm by which a layer's bound is measured
        optimizer, x = lnb.LNB(model), torch.randn(40, 64, 6, dtype=torch.float64)
        for rows in x:
            optimizer.zero_grad()
            (model(unit * rows) - rows[:, :1].sin()).square().mean().backward()
            optimizer.step()
        outputs.append(model(unit * x[0]))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-6)


def test_the_bias_of_a_layer_whose_data_are_zero_moves() -> None:
    layer = nn.Linear(6, 5)
    optimizer, x, target = lnb.LNB(layer), torch.zeros(20, 6), torch.arange(5.0)
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer.bias.detach(), target, atol=0.3, rtol=0)


@pytest.mark.parametrize("form", ["tables", "general"])
def test_biases_count_but_in_layers_that_see_data(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "general":
        monkeypatch.setattr("lnb.step.prepare", lambda *_: None)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    optimizer = lnb.LNB(model)
    kept = {layer: torch.zeros(layer.out_features, dtype=torch.float64) for layer in model}
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(30, 4)).square().mean().backward()
        for layer, average in kept.items():
            square = layer.weight.grad.double().square().sum(1)
            if layer is model[1]:
                square += layer.bias.grad.double().square()
            average.lerp_(square, 1 - optimizer.config.b_rows)
        optimizer.step()
    for layer, average in kept.items():
        torch.testing.assert_close(optimizer.state[layer.weight]["row_square"][0], average)
