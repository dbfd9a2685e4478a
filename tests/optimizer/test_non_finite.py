"""NaN and inf: a step changes everything or nothing, and the host does not wait for the device to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from optimizer.small_models import (
    MODES,
    Batch,
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
from torch.utils._python_dispatch import TorchDispatchMode

import lnb
from lnb.verdict import Verdict

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture
def device_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts stay tensors, as they do on an accelerator: every write is then conditional."""

    def on_device(self: Verdict, ok: torch.Tensor | bool, wait: bool = False) -> None:
        ok = torch.as_tensor(ok)
        self._by_device, self._ok = {ok.device: ok}, ok
        self.known = wait
        self.rejected = wait and not bool(ok)

    monkeypatch.setattr(Verdict, "__init__", on_device)


def spoiled(batch: Batch, bad: float) -> Batch:
    x = batch[0].clone()
    x[3, 1, 2, 0] = bad
    return x, batch[1]


def spoil(mode: str, kind: str, bad: float, model: torch.nn.Module, optimizer: lnb.LNB) -> None:
    """A step whose input or gradient has one bad entry."""
    if kind == "input":
        train(model, optimizer, [spoiled(batches(1)[0], bad)])
        return
    optimizer.zero_grad()
    loss_of(model, batches(1)[0]).backward()
    parameter = dict(model.named_parameters())[kind]
    parameter.grad.view(-1)[-1] = bad
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 2, 3])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["input", "0.weight", "4.bias", "5.bias"])
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_step_changes_nothing(mode: str, kind: str, bad: float, steps: int) -> None:
    model, optimizer = trained(mode, steps=steps)
    before = snapshot(model, optimizer)
    spoil(mode, kind, bad, model, optimizer)
    assert same(snapshot(model, optimizer), before)
    assert optimizer.diagnostics() == {"steps": steps + 1, "skipped_steps": 1}
    train(model, optimizer, batches(2, seed=9))  # and training goes on
    assert optimizer.diagnostics() == {"steps": steps + 3, "skipped_steps": 1}
    assert not same(snapshot(model, optimizer), before)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("device_route")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["input", "0.weight", "4.bias", "5.bias"])
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_step_changes_nothing_on_a_device(mode: str, kind: str, bad: float) -> None:
    model, optimizer = trained(mode)
    before = snapshot(model, optimizer)
    spoil(mode, kind, bad, model, optimizer)
    assert same(snapshot(model, optimizer), before)
    assert optimizer.diagnostics() == {"steps": 4, "skipped_steps": 1}
    train(model, optimizer, batches(2, seed=9))
    assert optimizer.diagnostics() == {"steps": 6, "skipped_steps": 1}
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("first_bad", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_route_of_accelerators_trains_alike(
    mode: str, first_bad: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lnb.step.prepare", lambda *_: None)  # tables round otherwise, and accelerators have none
    data = [*batches(3), spoiled(batches(1)[0], float("nan")), *batches(4, seed=9)]
    if first_bad:
        data.insert(0, spoiled(batches(1)[0], float("inf")))
    model = mixed()
    train(model, lnb.LNB(model, **MODES[mode]), data)
    request.getfixturevalue("device_route")
    other = mixed()
    train(other, lnb.LNB(other, **MODES[mode]), data)
    assert equal_parameters(model, other)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device, with the function of the package that did it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item")
        if any(func.name().startswith(f"aten::{name}") for name in names):
            self.found.append(next(_callers()))
        return func(*args, **(kwargs or {}))


def _callers() -> Iterator[str]:
    import sys

    frame = sys._getframe(2)
    while frame is not None:
        if "lnb" in frame.f_globals.get("__name__", ""):
            yield f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    yield "torch"


@pytest.mark.usefixtures("device_route")
@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05)], ids=["number", "tensor"])
@pytest.mark.parametrize("options", [{}, {"trust_region": "layer"}, {"others": "adamw"}, {"solver": "arrow"}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_host_never_waits(mode: str, options: dict[str, Any], lr: Any) -> None:
    settings = MODES[mode] | options
    if mode == "fast" and "solver" in options:
        settings |= {"trust_region": "layer"}
    settings["lr"] = lr
    model = mixed()
    optimizer = lnb.LNB(model, **settings)
    with HostReads() as reads:
        for batch in [*batches(2), spoiled(batches(1)[0], float("nan")), *batches(2)]:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    # On the CPU alone, a factorisation looks at its own success.
    assert [name for name in reads.found if name != "lnb.statistics.factored.factorize"] == []
    assert optimizer.diagnostics() == {"steps": 5, "skipped_steps": 1}


@pytest.mark.parametrize("mode", MODES)
def test_strict_raises_and_changes_nothing(mode: str) -> None:
    model = mixed()
    optimizer = lnb.LNB(model, strict=True, **MODES[mode])
    train(model, optimizer, batches(2))
    before = snapshot(model, optimizer)
    with pytest.raises(FloatingPointError, match="NaN or inf"):
        train(model, optimizer, [spoiled(batches(1)[0], float("inf"))])
    assert same(snapshot(model, optimizer), before)
    assert optimizer.diagnostics()["skipped_steps"] == 1
    train(model, optimizer, batches(2))
    assert optimizer.diagnostics()["skipped_steps"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_overflow_of_the_second_moment_is_caught(mode: str) -> None:
    """Inputs whose squares overflow float32 while the gradient stays finite: their layer stands still, nothing else."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    optimizer = lnb.LNB(model, **MODES[mode] | {"weight_decay": 0.0})
    before = copied(dict(model.named_parameters()))
    (model(torch.full((3, 4), 1e25)) * 1e-20).sum().backward()
    optimizer.step()
    assert optimizer.diagnostics() == {"steps": 1, "skipped_steps": 0, "stood_still/0": 1}
    parameters, state = snapshot(model, optimizer)
    assert same(parameters, before)
    assert all(bool(value.isfinite().all()) for entry in state.values() for value in entry.values())


@pytest.mark.usefixtures("device_route")
@pytest.mark.parametrize("also", [None, True, False])
@pytest.mark.parametrize("ok", [True, False])
def test_a_write_needs_the_verdict_and_its_own_condition(ok: bool, also: bool | None) -> None:
    target = torch.zeros(3)
    verdict = Verdict(torch.tensor(ok))
    verdict.commit(target, torch.ones(3), also=None if also is None else torch.tensor(also))
    assert target.tolist() == [float(ok and also is not False)] * 3
