"""Interrupted steps: Ctrl-C waits for the end of a step, and no gradient is averaged twice unseen."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from interrupts import Scene, press, sweep, throw
from optimizer.small_models import batches, copied, loss_of, mixed, same, train

import lnb
from lnb import step

needs_signals = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def own_handler() -> Any:
    """Python's own handler of Ctrl-C, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ready() -> tuple[torch.nn.Module, lnb.LNB]:
    """A model after three steps, with the gradients of the fourth."""
    model = mixed()
    optimizer = lnb.LNB(model, lr=0.02)
    train(model, optimizer, batches(3))
    optimizer.zero_grad()
    loss_of(model, batches(4)[-1]).backward()
    return model, optimizer


def content(model: torch.nn.Module, optimizer: lnb.LNB) -> dict[str, Any]:
    return copied({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def before_moving(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """``act``, once, when the averages are written and the parameters not yet moved."""
    acted = []

    def after_acting(apply: Callable[..., None]) -> Callable[..., None]:
        def acting(*arguments: Any) -> None:
            if not acted:
                acted.append(True)
                act()
            apply(*arguments)

        return acting

    monkeypatch.setattr(step, "apply", after_acting(step.apply))
    monkeypatch.setattr(step.PreparedShare, "apply", after_acting(step.PreparedShare.apply))


@needs_signals
@pytest.mark.parametrize(("mode", "steps"), [("fast", 0), ("fast", 2), ("gain", 2), ("paper", 2)])
def test_interrupted_at_lines_of_the_step(mode: str, steps: int) -> None:
    fates = sweep(mode, steps, stride=40)
    assert fates["exception: refused to repeat"] > 0
    assert fates["exception: repeated"] > 0
    assert fates["Ctrl-C: complete"] > 0


@needs_signals
def test_ctrl_c_waits_for_the_end_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted_model, wanted = ready()
    wanted.step()
    model, optimizer = ready()
    before_moving(monkeypatch, press)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert same(content(model, optimizer), content(wanted_model, wanted))
    optimizer.step()  # the same gradients: made already
    assert same(content(model, optimizer), content(wanted_model, wanted))


@needs_signals
def test_a_second_ctrl_c_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = ready()
    before = copied(model.state_dict())

    def twice() -> None:
        press()
        press()

    before_moving(monkeypatch, twice)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert same(copied(model.state_dict()), before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(RuntimeError, match="broken off"):
        optimizer.step()


@needs_signals
def test_a_handler_of_the_program_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    handler = lambda number, frame: seen.append(True)  # noqa: E731
    signal.signal(signal.SIGINT, handler)
    _, optimizer = ready()
    before_moving(monkeypatch, press)
    optimizer.step()
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_step_that_broke_off_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = ready()
    momentum = copied(optimizer.state_dict())
    before_moving(monkeypatch, throw)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    after = content(model, optimizer)
    assert not same(after["optimizer"], momentum)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"broken off.*count them twice.*zero_grad\(\).*or load a saved state"):
            optimizer.step()
        assert same(content(model, optimizer), after)


@pytest.mark.parametrize("way", ["zero_grad", "model", "in place", "load", "closure", "copy", "pickle"])
def test_ways_to_go_on(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    model, optimizer = ready()
    saved = copied(optimizer.state_dict())
    before_moving(monkeypatch, throw)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    if way == "load":
        optimizer.load_state_dict(saved)
        loss_of(model, batches(5)[-1]).backward()
    elif way == "copy":
        model, optimizer = copy.deepcopy((model, optimizer))
    elif way == "pickle":
        model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    elif way == "zero_grad":
        optimizer.zero_grad()
    else:
        model.zero_grad(set_to_none=way != "in place")
    before = copied(model.state_dict())
    if way in ("copy", "pickle"):
        train(model, optimizer, batches(5)[-1:])
    elif way == "closure":

        def closure() -> float:
            optimizer.zero_grad()
            loss = loss_of(model, batches(5)[-1])
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)
    else:
        if way != "load":
            loss_of(model, batches(5)[-1]).backward()
        optimizer.step()
    assert not same(copied(model.state_dict()), before)


def test_in_another_thread_and_on_errors_before_writing() -> None:
    model, optimizer = ready()
    made: list[float] = []

    def body() -> None:
        optimizer.step()
        made.append(optimizer.diagnostics()["steps"])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert made == [4]
    loss_of(model, batches(5)[-1]).backward()
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert optimizer.diagnostics()["steps"] == 5


@pytest.mark.parametrize(("mode", "steps"), [("fast", 0), ("paper", 0)])
def test_a_first_step_that_broke_off_in_its_statistics(mode: str, steps: int) -> None:
    scene = Scene(mode, steps)
    lines = scene.lines_of("averages.py", "running.py", "solve.py", "conjugate_gradients.py", "refresh.py")
    assert len(lines) > 20
    for line in lines[::9]:
        assert scene.throw_at(line) in ("refused to repeat", "repeated")


def test_the_state_of_a_refused_first_step_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It broke off after its writes and before it was counted; a checkpoint may have to hold it."""
    scene = Scene("fast", 0)
    model, optimizer = scene.ready()
    with monkeypatch.context() as patched:
        patched.setattr("lnb.reports.diagnostics.LayerRecords.record", lambda *_: throw())
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    found = scene.content(model, optimizer)
    assert found["optimizer"]["state"]
    with pytest.raises(RuntimeError, match="broken off"):
        optimizer.step()
    assert same(scene.content(model, optimizer), found)
