"""LNB's methods take what ``torch.optim.Optimizer``'s take, by the same names: trainers call them by position and by keyword."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from torch.optim import Optimizer

import lnb

_OWN = {"__init__", "__doc__", "__module__"}
OVERRIDDEN = sorted(
    name
    for name, value in vars(lnb.LNB).items()
    if name not in _OWN and callable(value) and callable(getattr(Optimizer, name, None)) and not hasattr(object, name)
)


def unwrapped(method: Any) -> Any:
    """``method`` as it was written: without the hooks and ``no_grad`` that PyTorch puts around."""
    return inspect.unwrap(method)


def test_all_that_trainers_call_is_compared() -> None:
    assert {"step", "zero_grad", "state_dict", "load_state_dict", "add_param_group", "__setstate__"} <= {*OVERRIDDEN}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_parameters_begin_with_the_base_classs(name: str) -> None:
    signatures = (inspect.signature(unwrapped(getattr(cls, name))) for cls in (lnb.LNB, Optimizer))
    own, base = ([(p.name, p.kind, p.default) for p in each.parameters.values()] for each in signatures)
    assert own[: len(base)] == base
    assert all(kind is inspect.Parameter.KEYWORD_ONLY and default is None for _, kind, default in own[len(base) :])


def test_what_a_subclass_of_optimizer_must_keep_is_no_property() -> None:
    """Trainers assign ``state`` and ``param_groups``."""
    for name in ("state", "param_groups", "defaults"):
        assert not isinstance(inspect.getattr_static(lnb.LNB, name, None), property)
