"""Float32 master weights of 16-bit parameters: small steps add up, and the masters are part of the state."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer.small_models import MODES, batches, mixed, train
from torch import Tensor, nn

import lnb


def state(optimizer: lnb.LNB, name: str) -> list[Tensor]:
    return [optimizer.state[p][name] for group in optimizer.param_groups for p in group["params"]]


def half(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    return mixed().to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_steps_below_the_precision_add_up(mode: str, dtype: torch.dtype) -> None:
    """Steps of 1e-5 vanish in most bfloat16 parameters; the masters move as float32 parameters would."""
    settings = MODES[mode] | {"lr": 1e-5, "weight_decay": 0.0}
    alone, model = half(dtype), half(dtype)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    train(alone, lnb.LNB(alone, **settings), batches(20))
    optimizer = lnb.LNB(model, master_weights=True, **settings)
    train(model, optimizer, batches(20))
    masters = state(optimizer, "master")
    assert all(master.dtype == torch.float32 for master in masters)
    for parameter, master in zip(model.parameters(), masters, strict=True):
        assert torch.equal(parameter, master.to(dtype))
    unmoved, moved = (
        sum(int((now != then).sum()) for now, then in zip(tensors, start, strict=True))
        for tensors in (alone.parameters(), masters)
    )
    assert moved > 0.9 * sum(then.numel() for then in start)
    assert unmoved < 0.5 * moved


def test_float32_parameters_have_none_and_move_the_same() -> None:
    models = mixed(), mixed()
    optimizers = [lnb.LNB(m, 0.02, master_weights=flag) for m, flag in zip(models, (True, False), strict=True)]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, batches(3))
    assert not any("master" in entry for entry in optimizers[0].state.values())
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


def test_saved_and_resumed_bit_for_bit() -> None:
    model = half()
    optimizer = lnb.LNB(model, 1e-4, master_weights=True)
    train(model, optimizer, batches(3))
    resumed = half()
    resumed.load_state_dict(model.state_dict())
    other = lnb.LNB(resumed, 1e-4, master_weights=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for run, its in ((model, optimizer), (resumed, other)):
        train(run, its, batches(3, seed=9))
    for a, b in zip(state(optimizer, "master"), state(other, "master"), strict=True):
        assert torch.equal(a, b)
    state_dict = optimizer.state_dict()
    state_dict["state"][0]["master"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"'master' of parameter '0\.weight' has shape"):
        other.load_state_dict(state_dict)


def test_a_skipped_step_leaves_them() -> None:
    model = half()
    optimizer = lnb.LNB(model, 1e-4, master_weights=True)
    train(model, optimizer, batches(2))
    before = [master.clone() for master in state(optimizer, "master")]
    x, y = batches(1)[0]
    train(model, optimizer, [(x * float("nan"), y)])
    assert optimizer.diagnostics()["skipped_steps"] == 1
    assert all(torch.equal(*pair) for pair in zip(state(optimizer, "master"), before, strict=True))


def test_a_parameter_that_someone_else_wrote_moves_on_from_there() -> None:
    model = half()
    optimizer = lnb.LNB(model, 1e-6, master_weights=True, weight_decay=0.0)
    train(model, optimizer, batches(2))
    weight = next(model.parameters())
    kept = optimizer.state[weight]["master"].clone()
    with torch.no_grad():
        weight[0].fill_(3.0)
    train(model, optimizer, batches(1))
    master = optimizer.state[weight]["master"]
    torch.testing.assert_close(master[0], torch.full_like(master[0], 3.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(master[1:], kept[1:], rtol=0, atol=1e-4)
    assert not torch.equal(kept[1:], weight[1:].float())


@pytest.mark.parametrize("others", ["identity", "adamw"])
def test_plan_counts_their_bytes(others: str) -> None:
    model = half()
    optimizer = lnb.LNB(model, 0.02, master_weights=True, others=others)
    train(model, optimizer, batches(1))
    plan = optimizer.plan()
    held = sum(t.numel() * t.element_size() for entry in optimizer.state.values() for t in entry.values())
    assert plan.state_bytes + plan.other_bytes == held


def test_setting_is_checked() -> None:
    with pytest.raises(TypeError, match="master_weights=1 must be True or False"):
        lnb.LNB(half(), master_weights=1)
