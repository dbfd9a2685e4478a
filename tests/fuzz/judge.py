"""Judging one case: build its arguments, make the call, and compare what it did with what it must."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from fuzz.case import Case, Values, build, copies, entries, run_program
from fuzz.memory import Snapshot, difference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import lnb_kernels as lk

OK = "ok"
REFUSED = "clean refusal"
WRONG = "silent wrong answer"
HALF = "half-applied failing call"
UNNAMED = "unnamed error"
UNWANTED = "refusal of a valid call"
CRASH = "crash"
HARNESS = "error of the harness"
FAULTS = (WRONG, HALF, UNNAMED, UNWANTED, CRASH, HARNESS)
CLASSES = (OK, REFUSED, *FAULTS)


@dataclass(frozen=True)
class Verdict:
    """What a case was."""

    judgement: str
    detail: str = ""


def judge(case: Case) -> Verdict:
    """Make the call of the case and judge it. A call that kills the process kills this one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = build(case)
        if case.fake:
            return _judge_fake(case, values)
        before = copies(values)
        snapshot = Snapshot(values)
        lk.set_backend(case.backend)
        try:
            result = run_program(case, values)
        except Exception as error:
            return _judge_error(case, error, snapshot)
        finally:
            lk.set_backend("auto")
        return _judge_result(case, values, before, result, snapshot)


def _judge_error(case: Case, error: Exception, snapshot: Snapshot) -> Verdict:
    said = f"{type(error).__name__}: {error}"
    changed = snapshot.changed()
    if changed:
        return Verdict(HALF, f"{said}\nbut the memory of {', '.join(changed)} has changed")
    if case.bad is None and not case.may_refuse:
        return Verdict(UNWANTED, said)
    arguments = [name for name in case.arguments if not name.startswith("base")]
    expected = arguments if case.bad is None else [case.bad]
    if not isinstance(error, (ValueError, TypeError, RuntimeError)) or not names_one(str(error), case, expected):
        return Verdict(UNNAMED, f"{said}\nwhich does not name {' or '.join(expected)}")
    return Verdict(REFUSED)


def names_one(message: str, case: Case, arguments: list[str]) -> bool:
    """Whether an error message names one of the arguments, an entry of a list also in the singular."""
    words = [word for name in arguments for word in (name, *case.names.get(name, ()))]
    return any(re.search(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", message) for word in words)


def _judge_result(case: Case, values: Values, before: Values, result: Any, snapshot: Snapshot) -> Verdict:
    if case.bad is not None:
        return Verdict(WRONG, f"{case.bad} is wrong ({case.fault}), and the call was not refused")
    beside = snapshot.changed_beside(case.written)
    if beside:
        return Verdict(WRONG, f"the memory of {', '.join(beside)} has changed, which the call must not write to")
    after = copies({**values, "result": result})
    with torch.no_grad():
        truth = case.truth(before, after)
    found = dict(entries("result", after["result"]))
    for name in case.written:
        found |= entries(name, after[name])
    for name, (want, allowed) in truth.items():
        if name not in found:
            return Verdict(WRONG, f"{name} is missing")
        wrong = difference(found[name], want, allowed)
        if wrong is not None:
            return Verdict(WRONG, f"{name}: {wrong}")
    return Verdict(OK)


def _judge_fake(case: Case, values: Values) -> Verdict:
    """The call on tensors without data must give the shapes, dtypes and strides of the real one."""
    result = run_program(case, values)
    originals = build(case)
    with FakeTensorMode() as mode:
        fakes = tree_map(lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v, originals)
        try:
            faked = run_program(case, fakes)
        except Exception as error:
            return Verdict(UNWANTED, f"on fake tensors: {type(error).__name__}: {error}")
    real = dict(entries("result", result))
    for name, value in entries("result", faked):
        if not isinstance(value, Tensor):
            continue
        for what in ("shape", "dtype", "device"):
            got, want = getattr(value, what), getattr(real[name], what)
            if got != want:
                return Verdict(WRONG, f"on fake tensors {name} has {what} {got}, on real ones {want}")
    return Verdict(OK)
