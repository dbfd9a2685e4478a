"""``torch.distributed.checkpoint``: state by names, made before the first step, and resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizer.small_models import MODES, batches, copied, equal_parameters, mixed, same, snapshot, train, trained
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import lnb

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
OPTIONS = {"nested": None, "flattened": FLAT, "full": StateDictOptions(full_state_dict=True, cpu_offload=True)}


@pytest.mark.parametrize("form", OPTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_resumes_bit_for_bit_by_names(mode: str, form: str) -> None:
    model, optimizer = trained(mode)
    saved = copied(dict(model.state_dict())), get_optimizer_state_dict(model, optimizer, options=OPTIONS[form])
    resumed = mixed()
    resumed.load_state_dict(saved[0])
    other = lnb.LNB(resumed, **MODES[mode] | {"lr": 7.0})
    set_optimizer_state_dict(resumed, other, saved[1], options=OPTIONS[form])
    assert same(snapshot(resumed, other), snapshot(model, optimizer))
    for net, opt in ((model, optimizer), (resumed, other)):
        train(net, opt, batches(7, seed=9))
    assert same(snapshot(resumed, other), snapshot(model, optimizer))


@pytest.mark.parametrize("form", ["nested", "flattened"])
@pytest.mark.parametrize("mode", MODES)
def test_resumes_from_files_into_a_fresh_optimizer(mode: str, form: str, tmp_path: Path) -> None:
    model, optimizer = trained(mode)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=OPTIONS[form])}, checkpoint_id=tmp_path)
    resumed = mixed()
    resumed.load_state_dict(model.state_dict())
    other = lnb.LNB(resumed, **MODES[mode])
    wanted: dict[str, Any] = {"optimizer": get_optimizer_state_dict(resumed, other, options=OPTIONS[form])}
    dcp.load(wanted, checkpoint_id=tmp_path)
    set_optimizer_state_dict(resumed, other, wanted["optimizer"], options=OPTIONS[form])
    for net, opt in ((model, optimizer), (resumed, other)):
        train(net, opt, batches(7, seed=9))
    assert same(snapshot(resumed, other), snapshot(model, optimizer))


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_asking_for_the_state_before_the_first_step_changes_nothing(mode: str, tensor_lr: bool) -> None:
    a, b = mixed(), mixed()
    lr = MODES[mode]["lr"]
    asked, plain = (lnb.LNB(m, **MODES[mode] | {"lr": torch.tensor(lr) if tensor_lr else lr}) for m in (a, b))
    saved = get_optimizer_state_dict(a, asked)
    assert equal_parameters(a, b)
    assert asked.diagnostics()["steps"] == 0
    assert saved["state"].keys() == dict(a.named_parameters()).keys()
    train(a, asked, batches(6))
    train(b, plain, batches(6))
    assert same(snapshot(a, asked), snapshot(b, plain))
    after = get_optimizer_state_dict(a, asked)
    for name, entry in after["state"].items():
        made = saved["state"][name]
        assert {key: value.shape for key, value in entry.items()} == {
            key: value.shape for key, value in made.items()
        }, name


@pytest.mark.parametrize("mode", MODES)
def test_a_state_saved_before_the_first_step_loads_as_none(mode: str) -> None:
    a, b = mixed(), mixed()
    first, second = (lnb.LNB(model, **MODES[mode]) for model in (a, b))
    set_optimizer_state_dict(b, second, get_optimizer_state_dict(a, first))
    c = mixed()
    for model, optimizer in ((b, second), (c, lnb.LNB(c, **MODES[mode]))):
        train(model, optimizer, batches(4))
    assert equal_parameters(b, c)


def test_a_damaged_progress_changes_nothing() -> None:
    model, optimizer = trained("paper")
    saved = get_optimizer_state_dict(model, optimizer)
    before = snapshot(model, optimizer)
    for group in saved["param_groups"]:
        group["lnb"] = "{"
    with pytest.raises(ValueError, match=r"lnb='\{' of a group is not what LNB writes"):
        set_optimizer_state_dict(model, optimizer, saved)
    assert same(snapshot(model, optimizer), before)


def test_other_settings_are_refused() -> None:
    model, optimizer = trained("paper")
    other = mixed()
    with pytest.raises(ValueError, match="whose state means something else"):
        set_optimizer_state_dict(other, lnb.LNB(other), get_optimizer_state_dict(model, optimizer))
