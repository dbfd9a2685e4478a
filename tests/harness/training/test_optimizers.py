"""Every optimizer by name: it moves all parameters, follows the schedule, and rejects nonsense."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from lnb_bench.training import OPTIMIZERS, OptimizerConfig
from lnb_bench.training.models import UNet
from lnb_bench.training.optimizers import MatrixMuon, build_optimizer, require_optimizer
from lnb_bench.training.peers import PEERS, PeerError


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.LayerNorm(4))


def backward(model: nn.Module) -> None:
    model(torch.randn(6, 2, 4, 4)).square().sum(1).exp().mean().backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_parameters_move(name: str) -> None:
    model = small_model()
    if name in PEERS:
        package = PEERS[name].package.partition(".")[0]
        pytest.importorskip(package, reason=f"NO PEER {name}: {package} is not installed")
    optimizer = build_optimizer(OptimizerConfig(name, lr=0.01), model, "constant", 10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())
        backward(model)
        optimizer.step()
    for (parameter_name, after), was in zip(model.named_parameters(), before, strict=True):
        assert after.isfinite().all(), parameter_name
        assert not torch.equal(after, was), parameter_name


def test_cosine_schedule() -> None:
    optimizer = build_optimizer(OptimizerConfig("sgd", lr=0.4), small_model(), "cosine", 8)
    rates = []
    for _ in range(9):
        rates.append(optimizer.lr)
        optimizer.step()
    assert rates == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 8)) for step in range(9)])


def test_muon_of_a_convolution_is_muon_of_its_matrix() -> None:
    weight = torch.randn(5, 2, 3, 3)
    convolution, matrix = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    mine, reference = MatrixMuon([convolution], lr=0.1), torch.optim.Muon([matrix], lr=0.1)
    for _ in range(3):
        gradient = torch.randn_like(weight)
        convolution.grad, matrix.grad = gradient, gradient.flatten(1).clone()
        mine.step()
        reference.step()
    assert torch.equal(convolution.flatten(1), matrix)
    mine.zero_grad()
    assert convolution.grad is None


def test_muon_shares_the_parameters_out() -> None:
    model = UNet(3, 11, width=4, depth=1)
    parts = build_optimizer(OptimizerConfig("muon"), model, "constant", 1).parts
    sizes = [sum(p.numel() for group in part.param_groups for p in group["params"]) for part in parts]
    weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
    assert sizes == [weights, sum(p.numel() for p in model.parameters()) - weights]


def test_settings_reach_the_optimizer() -> None:
    model = small_model()
    group = build_optimizer(OptimizerConfig("lnb", weight_decay=0.25, settings={"ridge": 0.5}), model, "constant", 1)
    assert group.parts[0].param_groups[0]["weight_decay"] == 0.25
    assert group.parts[0].param_groups[0]["ridge"] == 0.5
    with pytest.raises(TypeError, match="rigde"):
        build_optimizer(OptimizerConfig("lnb", settings={"rigde": 0.5}), small_model(), "constant", 1)


@pytest.mark.parametrize("lr", [-1.0, math.nan, math.inf])
def test_bad_rates(lr: float) -> None:
    with pytest.raises(ValueError, match="lr="):
        OptimizerConfig("adamw", lr=lr)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="optimizer='adam' must be one of lnb, lnb-paper, lnb-full-batch, adamw, nadamw, muon, sgd"
    ):
        OptimizerConfig("adam")
    with pytest.raises(ValueError, match="schedule='linear' must be one of constant, cosine"):
        build_optimizer(OptimizerConfig("sgd"), small_model(), "linear", 5)


def test_state_of_another_set_of_optimizers() -> None:
    model = small_model()
    muon = build_optimizer(OptimizerConfig("muon"), model, "constant", 1)
    with pytest.raises(ValueError, match="state of 2 optimizers, this run has 1"):
        build_optimizer(OptimizerConfig("sgd"), model, "constant", 1).load_state_dict(muon.state_dict())


def test_a_missing_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("soap", "psgd"):
        monkeypatch.setitem(PEERS, name, dataclasses.replace(PEERS[name], package="no_such_package_of_peers"))
    require_optimizer("adamw")
    with pytest.raises(PeerError, match="optimizer 'psgd' needs the package 'no_such_package_of_peers', which is not"):
        require_optimizer("psgd")
    with pytest.raises(PeerError, match="or leave 'soap' out"):
        build_optimizer(OptimizerConfig("soap"), small_model(), "constant", 1)


def test_a_peer_of_layers_leaves_the_rest_to_adamw() -> None:
    pytest.importorskip("singd", reason="NO PEER kfac: singd is not installed")
    model = small_model()
    layers, rest = build_optimizer(OptimizerConfig("kfac", lr=0.3), model, "constant", 1).parts
    assert isinstance(rest, torch.optim.AdamW)
    moved = [id(p) for part in (layers, rest) for group in part.param_groups for p in group["params"]]
    assert sorted(moved) == sorted(map(id, model.parameters()))
    assert [id(p) for p in rest.param_groups[0]["params"]] == [id(p) for p in model[-1].parameters()]  # type: ignore[index]
    assert rest.param_groups[0]["lr"] == pytest.approx(0.01)


def test_warm_up() -> None:
    optimizer = build_optimizer(OptimizerConfig("sgd", lr=0.4, warmup=0.25), small_model(), "cosine", 12)
    rates = []
    for _ in range(13):
        rates.append(optimizer.lr)
        optimizer.step()
    falling = [0.2 * (1 + math.cos(math.pi * step / 9)) for step in range(10)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, *falling])
    with pytest.raises(ValueError, match=r"warmup=1\.0 must be at least 0 and below 1"):
        OptimizerConfig("sgd", warmup=1.0)


def test_averaged_iterates_are_shown_and_taken_back() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(OptimizerConfig("sgd", settings={"average_iterates": 0.25}), model, "cosine", 4)
    average = model.weight.detach().clone()
    for step in range(1, 4):
        optimizer.zero_grad()
        model(torch.randn(3, 2)).square().mean().backward()
        optimizer.step()
        average.lerp_(model.weight.detach(), 1 - min(0.25, (1 + step) / (10 + step)))
    trained, saved = model.weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    with optimizer.evaluating():
        torch.testing.assert_close(model.weight.detach(), average)
    assert torch.equal(model.weight, trained)
    again = build_optimizer(OptimizerConfig("sgd", settings={"average_iterates": 0.25}), model, "cosine", 4)
    again.load_state_dict(saved)
    with again.evaluating():
        torch.testing.assert_close(model.weight.detach(), average)


def test_cautious_decay_of_what_the_step_shrinks() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(weight)
    settings = {"cautious_decay": 0.5, "momentum": 0.0}
    optimizer = build_optimizer(OptimizerConfig("sgd", lr=0.1, settings=settings), model, "cosine", 4)
    model.weight.grad = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # the first and the last are moved towards zero
    optimizer.step()
    moved = weight - 0.1 * torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    shrunk = torch.tensor([[1.0, 0.0], [0.0, -4.0]])
    torch.testing.assert_close(model.weight.detach(), moved - 0.1 * 0.5 * shrunk)
    model.weight.grad.zero_()
    before, rate = model.weight.detach().clone(), optimizer.lr
    optimizer.step()  # a step of zero hinders nothing
    torch.testing.assert_close(model.weight.detach(), before * (1 - rate * 0.5))
    for settings, message in (
        ({"average_iterates": 1}, r"average_iterates=1 must be a number above 0 and below 1"),
        ({"cautious_decay": -1.0}, r"cautious_decay=-1\.0 must be a number above 0 and finite"),
    ):
        with pytest.raises(ValueError, match=message):
            build_optimizer(OptimizerConfig("lnb", settings=settings), model, "cosine", 4)


def test_frozen_parameters_stay() -> None:
    for name in ("adamw", "nadamw", "muon", "lnb"):
        model = small_model()
        model[0].requires_grad_(False)  # type: ignore[index]
        before = [parameter.clone() for parameter in model[0].parameters()]  # type: ignore[index]
        optimizer = build_optimizer(OptimizerConfig(name, weight_decay=0.1), model, "constant", 2)
        backward(model)
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(model[0].parameters(), before, strict=True))  # type: ignore[index]


def test_schedule_free_shows_its_average_and_goes_on_as_before() -> None:
    pytest.importorskip("pytorch_optimizer", reason="NO PEER schedule-free: pytorch_optimizer is not installed")
    model = small_model()
    optimizer = build_optimizer(OptimizerConfig("schedule-free", lr=0.1), model, "cosine", 4)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    assert optimizer.lr == 0.1  # the schedule is its own
    training = [parameter.detach().clone() for parameter in model.parameters()]
    with optimizer.evaluating():
        assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), training, strict=True))
    for parameter, was in zip(model.parameters(), training, strict=True):
        torch.testing.assert_close(parameter.detach(), was)
