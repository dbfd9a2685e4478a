"""Parameter groups as other optimizers and trainers write them, and those that ``lnb.param_groups`` makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer.small_models import MODES, batches, copied, equal_parameters, mixed, same, train, trained
from torch import nn

import lnb

FOREIGN = {
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "amsgrad": False,
    "fused": True,
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": None,
    "name": "decay",
    "lr_scale": 0.5,
    "use_fallback": False,
    "initial_lr": 0.05,
    "decoupled_weight_decay": True,
    "use_muon": False,
}


@pytest.mark.parametrize("mode", MODES)
def test_keys_of_other_optimizers_change_nothing_and_are_kept(mode: str) -> None:
    a, b = mixed(), mixed()
    optimizer = lnb.LNB(a, params=[{"params": list(a.parameters()), **FOREIGN}], **MODES[mode])
    train(a, optimizer, batches(4))
    train(b, lnb.LNB(b, **MODES[mode]), batches(4))
    assert equal_parameters(a, b)
    other_model = mixed()
    other = lnb.LNB(other_model, **MODES[mode])
    other.load_state_dict(optimizer.state_dict())
    for group in (optimizer.param_groups[0], optimizer.state_dict()["param_groups"][0], other.param_groups[0]):
        assert {name: group[name] for name in FOREIGN} == FOREIGN


def test_keys_that_were_not_saved_stay() -> None:
    _, optimizer = trained("paper")
    model = mixed()
    other = lnb.LNB(model, params=[{"params": list(model.parameters()), "lr_scale": 0.25}], **MODES["paper"])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr_scale"] == 0.25


@pytest.mark.parametrize("name", ["maximize", "differentiable", "capturable"])
def test_switches_that_cannot_be_followed_are_refused(name: str) -> None:
    model = mixed()
    with pytest.raises(ValueError, match=f"{name}=True must be False or None"):
        lnb.LNB(model, params=[{"params": list(model.parameters()), name: True}])
    model, optimizer = trained("paper")
    saved = optimizer.state_dict()
    saved["param_groups"][0][name] = True
    with pytest.raises(ValueError, match=f"{name}=True must be False or None"):
        optimizer.load_state_dict(saved)
    before = copied(dict(model.named_parameters()))
    optimizer.param_groups[0][name] = True
    with pytest.raises(ValueError, match=f"{name}=True must be False or None"):
        train(model, optimizer, batches(1))
    assert same(copied(dict(model.named_parameters())), before)


def test_settings_of_the_whole_optimizer_are_accepted_in_a_group_only_as_they_are() -> None:
    model = mixed()
    groups = [{"params": list(model.parameters()), "momentum": 0.9, "nesterov": True}]
    lnb.LNB(model, params=groups)
    with pytest.raises(ValueError, match=r"momentum=0\.5 cannot be set per group, it is 0\.9 for all of them"):
        lnb.LNB(model, params=[{"params": list(model.parameters()), "momentum": 0.5}])


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.pos = nn.Parameter(torch.zeros(1, 3, 4))
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(3)])
        self.norm = nn.LayerNorm((3, 4))
        self.head = nn.Linear(4, 2)


def _by_name(model: nn.Module, groups: list[dict[str, Any]], key: str) -> dict[str, Any]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group[key] for group in groups for parameter in group["params"]}


def test_weight_decay_spares_biases_and_norms() -> None:
    model = Blocks()
    found = _by_name(model, lnb.param_groups(model, weight_decay=0.1), "weight_decay")
    assert found.keys() == dict(model.named_parameters()).keys()
    decays = {"embed.weight", "pos", "head.weight", *(f"blocks.{i}.1.weight" for i in range(3))}
    assert {name for name, value in found.items() if value == 0.1} == decays
    assert all(value == 0 for name, value in found.items() if name not in decays)
    spared = lnb.param_groups(model, weight_decay=0.1, no_decay=["pos"], decay_embeddings=False)
    found = _by_name(model, spared, "weight_decay")
    assert {name for name, value in found.items() if value == 0.1} == decays - {"embed.weight", "pos"}


def test_rates_fall_from_the_output_to_the_input() -> None:
    model = Blocks()
    groups = lnb.param_groups(model, weight_decay=0.1, lr=0.2, layer_decay=0.5)
    found = _by_name(model, groups, "lr")
    expected = {"embed": 0.2 / 16, "pos": 0.2 / 16, "blocks.0": 0.2 / 8, "blocks.1": 0.1 / 2, "blocks.2": 0.1}
    for name, lr in found.items():
        wanted = next((value for start, value in expected.items() if name.startswith(start)), 0.2)
        assert lr == pytest.approx(wanted), name
    optimizer = lnb.LNB(model, params=groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    model.head(model.blocks[0](torch.randn(6, 4))).sum().backward()
    optimizer.step()
    schedule.step()
    assert _by_name(model, optimizer.param_groups, "lr") == {name: lr / 2 for name, lr in found.items()}


def test_layers_can_be_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    groups = lnb.param_groups(model, weight_decay=0.0, lr=1.0, layer_decay=0.5, layers=[model["b"]])
    found = _by_name(model, groups, "lr")
    assert [found[f"{name}.weight"] for name in "abc"] == [0.25, 0.5, 1.0]
    with pytest.raises(ValueError, match=r"pass layers=\[\.\.\.\]"):
        lnb.param_groups(model, weight_decay=0.0, lr=1.0, layer_decay=0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"weight_decay": -1.0}, ValueError, "weight_decay=-1.0"),
        ({"weight_decay": 0.1, "no_decay": "pos"}, TypeError, "no_decay='pos'"),
        ({"weight_decay": 0.1, "no_decay": ["nothing"]}, ValueError, "'nothing' is the name of no parameter"),
        ({"weight_decay": 0.1, "layer_decay": 0.5}, ValueError, "needs lr"),
        ({"weight_decay": 0.1, "lr": 0.1, "layer_decay": 1.5}, ValueError, "layer_decay=1.5"),
        ({"weight_decay": 0.1, "lr": 0.1, "layer_decay": 0.0}, ValueError, "layer_decay=0.0"),
        ({"weight_decay": 0.1, "layers": []}, ValueError, "layer_decay only"),
    ],
)
def test_bad_arguments_of_param_groups(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        lnb.param_groups(Blocks(), **arguments)
    assert words in str(raised.value)


def test_lists_of_parameters_are_followed() -> None:
    """A parameter that leaves its group stands still; in another one it has that group's rate."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = lnb.LNB(model, 0.02)

    def moved() -> list[bool]:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
        return [not torch.equal(one, two) for one, two in zip(model.parameters(), before, strict=True)]

    assert [moved() for _ in range(4)] == [[True] * 4] * 4
    bias = optimizer.param_groups[0]["params"].pop(1)
    optimizer.add_param_group({"params": [bias], "lr": 0.0})
    assert moved() == [True, False, True, True]
    optimizer.param_groups[1]["lr"] = 0.02
    assert moved() == [True] * 4
    optimizer.param_groups[0]["params"].pop()
    assert moved() == [True, True, True, False]
