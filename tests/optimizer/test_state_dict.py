"""Saving, loading, copying and pickling: training goes on bit for bit, and a wrong state changes nothing."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from optimizer.small_models import (
    MODES,
    batches,
    copied,
    equal_parameters,
    loss_of,
    mixed,
    same,
    snapshot,
    train,
    trained,
)
from torch import nn

import lnb


def saved_and_loaded(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("mode", MODES)
def test_resumes_bit_for_bit_from_a_file(mode: str, steps: int, dtype: torch.dtype) -> None:
    model, optimizer = trained(mode, lambda: mixed().to(dtype), steps)
    resumed = mixed().to(dtype)
    resumed.load_state_dict(saved_and_loaded(model.state_dict()))
    other = lnb.LNB(resumed, **MODES[mode] | {"lr": 7.0})
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert same(snapshot(resumed, other), snapshot(model, optimizer))
    for net, opt in ((model, optimizer), (resumed, other)):
        train(net, opt, batches(7, seed=9))
    assert same(snapshot(resumed, other), snapshot(model, optimizer))
    assert other.param_groups[0]["lr"] == MODES[mode]["lr"]


def test_state_of_low_precision_parameters_is_float32() -> None:
    _, optimizer = trained("paper", lambda: mixed().to(torch.bfloat16))
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}


def test_loading_copies() -> None:
    model, optimizer = trained("paper")
    saved = optimizer.state_dict()
    before = copied(saved)
    other = lnb.LNB(mixed(), **MODES["paper"])
    other.load_state_dict(saved)
    train(other._model, other, batches(2))
    assert same(copied(optimizer.state_dict()), before)
    assert equal_parameters(model, optimizer._model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), lambda pair: saved_and_loaded(pair, False)],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_model_and_optimizer_copied_together_train_alike_and_apart(mode: str, copier: Any) -> None:
    model, optimizer = trained(mode)
    twin, twin_optimizer = copier((model, optimizer))
    before = snapshot(model, optimizer)
    train(twin, twin_optimizer, batches(4, seed=9))
    assert same(snapshot(model, optimizer), before)
    train(model, optimizer, batches(4, seed=9))
    assert same(snapshot(model, optimizer), snapshot(twin, twin_optimizer))
    assert twin_optimizer.diagnostics()["steps"] == 7


@pytest.mark.parametrize("mode", MODES)
def test_copy_between_backward_and_step(mode: str) -> None:
    """torch copies no gradients, so the copy has seen no inputs either: both come back with the next backward."""
    model, optimizer = trained(mode, steps=1)
    optimizer.zero_grad()
    loss_of(model, batches(1)[0]).backward()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    optimizer.step()
    twin_optimizer.step()  # nothing has a gradient
    loss_of(twin, batches(1)[0]).backward()
    twin_optimizer.step()
    assert same(snapshot(model, optimizer), snapshot(twin, twin_optimizer))


def test_optimizer_copied_alone_brings_its_own_model() -> None:
    model, optimizer = trained("fast")
    twin = copy.deepcopy(optimizer)
    assert twin._model is not model
    train(twin._model, twin, batches(2))
    train(model, optimizer, batches(2))
    assert equal_parameters(model, twin._model)


@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: saved_and_loaded(m, False)],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copied_model_is_attached_and_switched_off(copier: Any) -> None:
    model, _ = trained("paper", steps=1)
    twin = copier(model)
    assert equal_parameters(twin, model)
    assert repr(twin) == repr(model)
    x, _ = batches(1)[0]
    assert torch.equal(twin(x), model(x))
    twin(x).sum().backward()
    captures = [capture for m in twin.modules() for capture in getattr(m, "_lnb_captures", {}).values()]
    assert len(captures) == 3
    assert all(capture.moments is None and not capture.inputs for capture in captures)
    other = lnb.LNB(twin, **MODES["paper"])  # and it can be optimized on its own
    train(twin, other, batches(2))
    assert other.diagnostics() == {"steps": 2, "skipped_steps": 0}


def wider() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64, 9, bias=False),
        nn.LayerNorm(9),
        nn.Linear(9, 3),
    )


def altered(**changes: Any) -> Any:
    def alter(saved: dict[str, Any]) -> Any:
        return saved | changes

    return alter


def with_state(key: str, value: Any) -> Any:
    def alter(saved: dict[str, Any]) -> Any:
        first = min(saved["state"])
        return saved | {"state": saved["state"] | {first: saved["state"][first] | {key: value}}}

    return alter


def without_state(key: str) -> Any:
    """Every parameter's state without ``key``, which some have."""

    def alter(saved: dict[str, Any]) -> Any:
        assert any(key in entry for entry in saved["state"].values())
        return saved | {
            "state": {i: {k: v for k, v in entry.items() if k != key} for i, entry in saved["state"].items()}
        }

    return alter


def without_setting(key: str) -> Any:
    def alter(saved: dict[str, Any]) -> Any:
        return saved | {"param_groups": [{k: v for k, v in saved["param_groups"][0].items() if k != key}]}

    return alter


def with_group(**changes: Any) -> Any:
    def alter(saved: dict[str, Any]) -> Any:
        return saved | {"param_groups": [saved["param_groups"][0] | changes]}

    return alter


@pytest.mark.parametrize(
    ("alter", "error", "words"),
    [
        (
            lambda saved: (
                lnb.LNB(wider(), **MODES["paper"]).state_dict()
                | {"state": trained("paper", wider)[1].state_dict()["state"]}
            ),
            ValueError,
            "3.weight",
        ),
        (lambda saved: lnb.LNB(nn.Linear(3, 3), **MODES["paper"]).state_dict(), ValueError, "groups of sizes [2]"),
        (lambda saved: trained("fast")[1].state_dict(), ValueError, "cholesky"),
        (lambda saved: torch.optim.AdamW(mixed().parameters()).state_dict(), ValueError, "lnb_format=None"),
        (lambda saved: [saved], TypeError, "state_dict"),
        (lambda saved: {"state": saved["state"]}, TypeError, "param_groups"),
        (altered(lnb_format=99), ValueError, "lnb_format=99"),
        (altered(lnb_step=-1), ValueError, "lnb_step=-1"),
        (altered(lnb_step="x"), ValueError, "lnb_step='x'"),
        (with_state("momentum", torch.zeros(1)), ValueError, "'momentum' of parameter '0.weight' has shape (1,)"),
        (with_state("momentum", 3), ValueError, "value 3"),
        (with_state("direction", torch.zeros(4, 4)), ValueError, "'direction' of parameter '0.weight'"),
        (with_state("momentum", torch.zeros(4, 2, 3, 3, dtype=torch.complex64)), ValueError, "is torch.complex64"),
        (with_state("momentum", torch.zeros(4, 2, 3, 3, dtype=torch.int64)), ValueError, "is torch.int64"),
        (with_state("momentum", torch.zeros(4, 2, 3, 3, dtype=torch.bfloat16)), ValueError, "is torch.bfloat16"),
        (with_state("momentum", torch.zeros(4, 2, 3, 3, device="meta")), ValueError, "on meta"),
        (with_state("momentum", torch.zeros(4, 2, 3, 3).to_sparse()), ValueError, "torch.sparse"),
        (
            with_state("momentum", torch.full((4, 2, 3, 3), float("nan"))),
            ValueError,
            "'momentum' of parameter '0.weight'",
        ),
        (with_state("mean", torch.full((1, 18), float("inf"))), ValueError, "'mean' of parameter '0.weight' holds NaN"),
        (with_state("step", torch.tensor(-1.0)), ValueError, "'step' of parameter '0.weight' is -1.0"),
        (with_state("step", torch.tensor(float("nan"))), ValueError, "'step' of parameter '0.weight'"),
        (with_state("nonsense", torch.zeros(1, 18)), ValueError, "'nonsense' of parameter '0.weight'"),
        (with_state(3, torch.zeros(1, 18)), ValueError, "3 of parameter '0.weight'"),
        (without_state("step"), ValueError, "lacks ['step']"),
        (without_state("momentum"), ValueError, "lacks ['momentum']"),
        (without_state("moment_step"), ValueError, "lacks ['moment_step']"),
        (without_state("mean"), ValueError, "lacks ['mean']"),
        (without_state("mean_square"), ValueError, "lacks ['mean_square']"),
        (without_state("direction"), ValueError, "lacks ['direction']"),
        (altered(state=None), TypeError, "state=None must be a dict"),
        (altered(state=3), TypeError, "state=3 must be a dict"),
        (altered(state=[]), TypeError, "state=[] must be a dict"),
        (altered(state={0: 7}), TypeError, "parameter '0.weight' must be a dict, not 7"),
        (altered(state={99: {}}), ValueError, "['99']"),
        (altered(param_groups=None), TypeError, "param_groups=None"),
        (altered(param_groups=[7]), TypeError, "param_groups[0]=7"),
        (altered(lnb_step=True), ValueError, "lnb_step=True"),
        (altered(lnb_plan={"rows": 3}), ValueError, "lnb_plan"),
        (without_setting("lr"), ValueError, "param_groups[0] lacks ['lr']"),
        (without_setting("ridge"), ValueError, "param_groups[0] lacks ['ridge']"),
        (without_setting("params"), ValueError, "param_groups[0] lacks ['params']"),
        (with_group(params=[0, 1, 2, 3, 4, 5, 6, 6]), ValueError, "more than once"),
        (with_group(params=3), TypeError, "['params']=3"),
        (with_group(lr=-1.0), ValueError, "lr=-1.0"),
        (with_group(lr=10**400), ValueError, "lr=1000"),
        (with_group(lr=torch.tensor(float("nan"))), ValueError, "['lr']=tensor(nan) must be in [0, inf)"),
        (with_group(weight_decay=10**400), ValueError, "weight_decay=1000"),
        (altered(lnb_format=torch.ones(3)), ValueError, "lnb_format=tensor"),
        (altered(lnb_step=10**400), ValueError, "lnb_step=1000"),
        (altered(lnb_plan=torch.tensor(1.0)), ValueError, "lnb_plan=tensor"),
        (altered(lnb_plan={"rows": {"0": [float("inf"), True]}, "decided": [], "layers": {}}), ValueError, "lnb_plan"),
        (altered(lnb_plan={"rows": {"0": [3, torch.ones(3)]}, "decided": [], "layers": {}}), ValueError, "layer '0'"),
        (altered(lnb_plan={"rows": {}, "decided": [], "layers": {"0": {"reason": None}}}), ValueError, "layer '0'"),
        (with_group(ridge="big"), TypeError, "ridge='big'"),
        (with_group(params=list(range(5))), ValueError, "groups of sizes [5]"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(alter: Any, error: type[Exception], words: str) -> None:
    model, optimizer = trained("paper")
    wrong = alter(optimizer.state_dict())
    before = snapshot(model, optimizer), copied(optimizer.state_dict())
    with pytest.raises(error) as raised:
        optimizer.load_state_dict(wrong)
    assert words in str(raised.value)
    assert same(snapshot(model, optimizer), before[0])
    assert same(copied(optimizer.state_dict()), before[1])
    train(model, optimizer, batches(1))


@pytest.mark.parametrize(
    "key", ["step", "momentum", "factor", "output_factor", "output_moment", "second_moment", "second_moment_step"]
)
def test_an_incomplete_state_of_a_factor_changes_nothing(key: str) -> None:
    model, optimizer = trained("fast")
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=rf"lacks \['{key}'\]"):
        optimizer.load_state_dict(without_state(key)(optimizer.state_dict()))
    assert same(snapshot(model, optimizer), before)
    train(model, optimizer, batches(1))


def test_an_incomplete_state_without_masters_changes_nothing() -> None:
    model = mixed().bfloat16()
    optimizer = lnb.LNB(model, master_weights=True)
    train(model, optimizer, batches(2))
    with pytest.raises(ValueError, match=r"lacks \['master'\]"):
        optimizer.load_state_dict(without_state("master")(optimizer.state_dict()))


@pytest.mark.parametrize(
    "settings", [{"solver": "arrow"}, {"solver": "dual"}, {"b_s": 0.5}, {"refresh_every": 3}], ids=str
)
def test_what_settings_keep_is_what_loading_wants(settings: dict[str, Any]) -> None:
    """Of every kind of state, at every step from the first on."""
    model = mixed()
    optimizer = lnb.LNB(model, 0.05, "paper", **settings)
    for batch in batches(3):
        other = mixed()
        twin = lnb.LNB(other, 0.05, "paper", **settings)
        twin.load_state_dict(optimizer.state_dict())
        assert same(copied(twin.state_dict()["state"]), copied(optimizer.state_dict()["state"]))
        train(model, optimizer, [batch])


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_step_leaves_a_state_that_loads(mode: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And parameters as they were; training goes on with new gradients."""
    model, optimizer = trained(mode, steps=steps)
    before = copied(dict(model.named_parameters()))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for stage, prepared in (("solve", "direct"), ("region_scales", "bound")):
        optimizer.zero_grad()
        loss_of(model, batches(1)[0]).backward()
        with monkeypatch.context() as patched:
            patched.setattr(f"lnb.step.{stage}", interrupt)
            patched.setattr(f"lnb.step.PreparedShare.{prepared}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
        assert same(copied(dict(model.named_parameters())), before)
        resumed = mixed()
        resumed.load_state_dict(model.state_dict())
        other = lnb.LNB(resumed, **MODES[mode])
        other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
        train(resumed, other, batches(2))
    train(model, optimizer, batches(1))
    assert optimizer.diagnostics() == {"steps": steps + 1, "skipped_steps": 0}
    assert not same(copied(dict(model.named_parameters())), before)


def test_a_closure_that_raises_changes_nothing() -> None:
    model, optimizer = trained("fast")
    before = snapshot(model, optimizer)

    def closure() -> float:
        optimizer.zero_grad()
        loss_of(model, batches(1)[0]).backward()
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    assert same(snapshot(model, optimizer), before)
    assert optimizer.diagnostics() == {"steps": 3, "skipped_steps": 0}


def test_state_dict_hooks() -> None:
    _, optimizer = trained("paper")
    seen: list[str] = []

    def post(opt: Any, saved: dict[str, Any]) -> dict[str, Any]:
        seen.append("saved")
        return saved | {"note": "mine"}

    def pre_load(opt: Any, saved: dict[str, Any]) -> dict[str, Any]:
        seen.append(f"loading {saved.pop('note')}")
        return saved | {"param_groups": [saved["param_groups"][0] | {"lr": 0.25}]}

    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("saving"))
    optimizer.register_state_dict_post_hook(post)
    other = lnb.LNB(mixed(), **MODES["paper"])
    other.register_load_state_dict_pre_hook(pre_load)
    other.register_load_state_dict_post_hook(lambda opt: seen.append(f"loaded {opt.param_groups[0]['lr']}"))
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    assert seen == ["saving", "saved", "loading mine", "loaded 0.25"]
    assert saved["note"] == "mine"
    assert same(copied(other.state_dict()["state"]), copied(optimizer.state_dict()["state"]))


def test_loading_another_precision_follows_the_model() -> None:
    _, optimizer = trained("paper", lambda: mixed().double())
    model = mixed()
    other = lnb.LNB(model, **MODES["paper"])
    other.load_state_dict(optimizer.state_dict())
    assert {value.dtype for state in other.state.values() for value in state.values()} == {torch.float32}
    train(model, other, batches(1))
    assert other.diagnostics()["skipped_steps"] == 0
