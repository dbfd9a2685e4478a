"""``step(loss=...)``: radii shrink where the loss rises beyond its noise, and nothing else changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb
from lnb.loss_rise import DECAY, DEVIATIONS, OPENING, SHORTEN


def make() -> tuple[nn.Module, lnb.LNB]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, lnb.LNB(model, lr=0.2)  # so short that no other rule sends a radius to its floor


def backward(model: nn.Module, step: int) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    F.mse_loss(model(x), x[:, :3]).backward()


def radii(model: nn.Module, optimizer: lnb.LNB) -> list[float]:
    return [optimizer.state[layer.weight]["radius"].item() for layer in model if isinstance(layer, nn.Linear)]


def train(model: nn.Module, optimizer: lnb.LNB, losses: list[float | None], first: int = 0) -> None:
    for step, loss in enumerate(losses, first):
        backward(model, step)
        optimizer.step(loss=loss)


NOISE = [1.0 + 0.1 * (-1) ** step for step in range(2 * OPENING)]


def test_losses_within_their_noise_change_nothing() -> None:
    (model, optimizer), (other, without) = make(), make()
    falling = [level * math.exp(-step / 20) for step, level in enumerate(NOISE)]
    train(model, optimizer, falling)
    train(other, without, [None] * len(falling))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "loss_mean" in optimizer.state[model[0].weight]
    assert "loss_mean" not in without.state[other[0].weight]


def by_hand(model: nn.Module, optimizer: lnb.LNB, factor: float) -> tuple[nn.Module, lnb.LNB]:
    """A copy of both, with radii multiplied by ``factor``."""
    other = copy.deepcopy(model)
    copied = lnb.LNB(other)
    copied.load_state_dict(optimizer.state_dict())
    for layer in (other[0], other[2]):
        copied.state[layer.weight]["radius"].mul_(factor)
    return other, copied


@pytest.mark.parametrize(("seen", "factor"), [(2 * OPENING, SHORTEN), (OPENING - 1, 1.0)])
def test_a_risen_loss_shortens_the_step_that_follows(seen: int, factor: float) -> None:
    model, optimizer = make()
    train(model, optimizer, NOISE[:seen])
    other, copied = by_hand(model, optimizer, factor)
    train(model, optimizer, [2.0], seen)
    train(other, copied, [None], seen)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_threshold_is_that_of_the_text() -> None:
    """A loss a little below the threshold, computed here from the sequence, changes nothing; a little above, it does."""
    mean = square = weight = 0.0
    for loss in NOISE:
        square = DECAY * square + (1 - DECAY) * (0.0 if weight == 0 else (loss - mean / weight) ** 2)
        mean, weight = DECAY * mean + (1 - DECAY) * loss, DECAY * weight + (1 - DECAY)
    threshold = mean / weight + DEVIATIONS * math.sqrt(square / weight)
    ends = []
    for loss in (None, threshold - 1e-3, threshold + 1e-3):
        model, optimizer = make()
        train(model, optimizer, [*NOISE, loss])
        ends.append(radii(model, optimizer))
    assert ends[0] == ends[1]
    assert all(risen < usual for risen, usual in zip(ends[2], ends[0], strict=True))


def test_a_loss_that_grows_without_end_is_survived() -> None:
    model, optimizer = make()
    train(model, optimizer, [10.0**step for step in range(38)])
    assert all(1e-4 <= radius <= 1 for radius in radii(model, optimizer))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "kind", [float, torch.tensor, lambda v: torch.tensor([v], dtype=torch.bfloat16, requires_grad=True)]
)
def test_numbers_and_tensors_are_the_same_loss(kind: Callable[[float], float | Tensor]) -> None:
    (model, optimizer), (other, floats) = make(), make()
    for step in range(OPENING + 2):
        loss = 8.0 if step > OPENING else 1.0
        for each, by in ((model, optimizer), (other, floats)):
            backward(each, step)
            by.step(loss=kind(loss) if each is model else loss)
    assert radii(model, optimizer) == radii(other, floats)


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_step_whose_loss_is_not_finite_is_skipped(bad: float | Tensor) -> None:
    model, optimizer = make()
    train(model, optimizer, NOISE)
    weights = [parameter.clone() for parameter in model.parameters()]
    before = copy.deepcopy(optimizer.state_dict()["state"])
    backward(model, 99)
    optimizer.step(loss=bad)
    assert optimizer.diagnostics()["skipped_steps"] == 1
    for a, b in zip(weights, model.parameters(), strict=True):
        assert torch.equal(a, b)
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[index][key])), key


def test_strict_raises_for_it() -> None:
    model = nn.Linear(3, 3)
    optimizer = lnb.LNB(model, strict=True)
    model(torch.randn(4, 3)).sum().backward()
    with pytest.raises(FloatingPointError, match="loss"):
        optimizer.step(loss=math.nan)


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        ("1.0", TypeError, "loss='1.0'"),
        (True, TypeError, "loss=True"),
        (torch.ones(3), ValueError, r"shape \(3,\)"),
        (torch.ones((), dtype=torch.complex64), TypeError, "complex64"),
    ],
)
def test_what_is_no_loss_is_refused(loss: object, error: type[Exception], words: str) -> None:
    model, optimizer = make()
    backward(model, 0)
    with pytest.raises(error, match=words):
        optimizer.step(loss=loss)  # type: ignore[arg-type]
    assert optimizer.step_index == 0
    with pytest.raises(ValueError, match="closure or loss"):
        optimizer.step(lambda: 1.0, loss=1.0)  # type: ignore[call-overload]
    optimizer.step()  # the gradients are still there


def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does() -> None:
    losses = [*NOISE, 2.0, 1.5, 1.0, 4.0]
    whole, optimizer = make()
    train(whole, optimizer, losses)
    half, first = make()
    train(half, first, losses[:15])
    saved = first.state_dict()
    resumed = lnb.LNB(half)
    resumed.load_state_dict(saved)
    train(half, resumed, losses[15:], 15)
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)


def test_settings_without_a_radius_read_no_loss() -> None:
    model = nn.Linear(3, 3)
    optimizer = lnb.LNB(model, preset="paper")
    for _ in range(3):
        model.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step(loss=1.0)
    assert "loss_mean" not in optimizer.state[model.weight]
