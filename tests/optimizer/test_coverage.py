"""``coverage()``: what every parameter gets and why; and the errors where nothing or not enough was seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from optimizer.small_models import MODES, batches, loss_of, mixed, same, snapshot, train
from torch import Tensor, nn

import lnb


def test_table() -> None:
    optimizer = lnb.LNB(mixed(), preset="paper")
    coverage = optimizer.coverage()
    assert [(row.name, row.shape, row.metric) for row in coverage] == [
        ("0.weight", (4, 2, 3, 3), "second moment"),
        ("0.bias", (4,), "second moment"),
        ("3.weight", (8, 64), "second moment"),
        ("4.weight", (8,), "identity"),
        ("4.bias", (8,), "identity"),
        ("5.weight", (3, 8), "second moment"),
        ("5.bias", (3,), "second moment"),
    ]
    assert coverage["0.weight"].reason == "convolution '0': 18 inputs and the bias"
    assert coverage["3.weight"].reason == "linear layer '3': 64 inputs"
    assert "LayerNorm is not claimed: it scales" in coverage["4.weight"].reason
    lines = str(coverage).splitlines()
    assert len(lines) == 1 + len(coverage) == 8
    assert lines[0].split() == ["parameter", "shape", "metric", "why"]
    assert "4x2x3x3" in lines[1]
    with pytest.raises(KeyError):
        coverage["9.weight"]


def test_others_rule_is_shown() -> None:
    assert lnb.LNB(mixed(), preset="fast").coverage()["4.weight"].metric == "adamw"


def test_frozen_and_unoptimized() -> None:
    model = mixed()
    model[0].weight.requires_grad_(False)
    model[3].requires_grad_(False)
    optimizer = lnb.LNB(model, preset="paper", params=[*model[0].parameters(), *model[3].parameters()])
    coverage = optimizer.coverage()
    assert coverage["0.weight"].reason == "frozen (requires_grad is False)"
    assert coverage["0.bias"].metric == "identity"
    assert "whose weight does not move" in coverage["0.bias"].reason
    assert coverage["3.weight"].metric == "none"
    assert coverage["5.weight"].reason == "in no parameter group: not optimized"


def test_excluded() -> None:
    model = mixed()
    optimizer = lnb.LNB(model, preset="paper", exclude=[model[5]])
    assert optimizer.coverage()["5.weight"].reason == "excluded"
    train(model, optimizer, batches(2))
    assert optimizer.diagnostics()["steps"] == 2


def share_weight(model: nn.Module) -> None:
    model.a.weight = model.b.weight


def share_across_types(model: nn.Module) -> None:
    model.a.weight = model.embedding.weight


def share_geometry(model: nn.Module) -> None:
    model.conv.weight, model.conv.bias = model.other.weight, model.other.bias


def share_with_own_forward(model: nn.Module) -> None:
    model.a.weight, model.a.bias = model.own.weight, model.own.bias


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.t()


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.own, self.embedding = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            OwnForward(4, 4),
            nn.Embedding(4, 4),
        )
        self.conv, self.other = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, padding=1)


@pytest.mark.parametrize(
    ("share", "name", "words"),
    [
        (share_weight, "a.weight", "shared by layers whose other parameter differs"),
        (share_weight, "a.bias", "shared by layers whose other parameter differs"),
        (
            share_across_types,
            "a.weight",
            "shared with a layer that is not claimed: Embedding is not claimed",
        ),
        (share_geometry, "conv.weight", "shared by convolutions of different geometry"),
        (share_with_own_forward, "a.weight", "shared with a layer that is not claimed: OwnForward has its own forward"),
    ],
)
def test_shared_parameters(share: object, name: str, words: str) -> None:
    model = Parts()
    share(model)  # type: ignore[operator]
    row = lnb.LNB(model, preset="paper").coverage()[name]
    assert words in row.reason
    assert row.metric == "identity"


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Embedding(4, 4), nn.LayerNorm(4)), nn.Sequential(nn.ReLU()), nn.Conv3d(2, 2, 1)],
    ids=["norms", "no-parameters", "conv3d"],
)
def test_no_supported_layer(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"model={type(model).__name__} has no layer that LNB can claim") as raised:
        lnb.LNB(model)
    for name, _ in model.named_parameters():
        assert name in str(raised.value)


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


NORM = "it scales every feature by itself"
UNCLAIMED: list[tuple[nn.Module, str]] = [
    (nn.LayerNorm(4), NORM),
    (nn.RMSNorm(4), NORM),
    (nn.GroupNorm(2, 4), NORM),
    (nn.BatchNorm1d(4), NORM),
    (nn.BatchNorm3d(4), NORM),
    (nn.InstanceNorm2d(4, affine=True), NORM),
    (nn.PReLU(), "its slopes are no linear map"),
    (nn.Conv3d(2, 2, 1), "no kernel forms the second moment of three-dimensional patches"),
    (nn.ConvTranspose1d(2, 2, 1), "its outputs are sums of overlapping patches"),
    (nn.ConvTranspose2d(2, 2, 1), "its outputs are sums of overlapping patches"),
    (nn.RNN(2, 2), "a loop over nn.Linear layers would be claimed"),
    (nn.LSTM(2, 2), "a loop over nn.Linear layers would be claimed"),
    (nn.GRU(2, 2), "does not show the inputs of the recurrent weights"),
    (nn.GRUCell(2, 2), "a cell of nn.Linear layers would be claimed"),
    (nn.Bilinear(2, 2, 2), "nn.Linear of their outer product would be claimed"),
    (nn.Embedding(3, 2), "its inputs are token numbers"),
    (nn.EmbeddingBag(3, 2), "its inputs are bags of token numbers"),
    (nn.AdaptiveLogSoftmaxWithLoss(4, 6, [3]).head, ""),
    (OwnParameter(), "its parameters are its own, not those of a layer that LNB knows"),
]


@pytest.mark.parametrize(("layer", "words"), UNCLAIMED, ids=lambda value: type(value).__name__)
def test_every_type_has_its_reason(layer: nn.Module, words: str) -> None:
    name = type(layer).__name__
    coverage = lnb.LNB(nn.ModuleList([layer, nn.Linear(2, 2)])).coverage()
    for parameter, _ in layer.named_parameters():
        row = coverage[f"0.{parameter}"]
        if words:
            assert row.metric == "adamw"
            assert row.reason.startswith(f"{name} is not claimed: ")
            assert words in row.reason
        else:
            assert row.metric == "second moment"  # a layer inside one that is of no kind


class Bypassed(nn.Module):
    """A layer whose weight is used, but whose forward can be bypassed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bypass = nn.Linear(32, 8), nn.Linear(8, 3), True

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(1)))
        return F.linear(x, self.second.weight, self.second.bias) if self.bypass else self.second(x)


@pytest.mark.parametrize("mode", MODES)
def test_an_input_that_was_not_seen_is_an_error_and_changes_nothing(mode: str) -> None:
    model = Bypassed()
    optimizer = lnb.LNB(model, **MODES[mode])
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="layer 'second' has a gradient, but its input was not seen"):
        train(model, optimizer, batches(1))
    assert same(snapshot(model, optimizer), before)
    assert optimizer.diagnostics() == {"steps": 0, "skipped_steps": 0}
    model.bypass = False
    train(model, optimizer, batches(3))  # the correct retry
    twin = Bypassed()
    twin.load_state_dict(before[0])
    twin.bypass = False
    train(twin, other := lnb.LNB(twin, **MODES[mode]), batches(3))
    assert same(snapshot(model, optimizer), snapshot(twin, other))


def test_a_gradient_set_by_hand_is_an_error() -> None:
    model = mixed()
    optimizer = lnb.LNB(model, **MODES["paper"])
    loss_of(model, batches(1)[0]).backward()
    optimizer.zero_grad()
    model[5].weight.grad = torch.ones(3, 8)
    with pytest.raises(RuntimeError, match="layer '5'"):
        optimizer.step()


def test_sparse_gradients_are_an_error() -> None:
    model = nn.ModuleList([nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2)])
    optimizer = lnb.LNB(model, **MODES["paper"])
    model[1](model[0](torch.tensor([1, 2]))).sum().backward()
    before = snapshot(model, optimizer)
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert same(snapshot(model, optimizer), before)
