"""Every bad argument is named with its value and what is allowed, before anything happens to the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer.small_models import mixed
from torch import nn

import lnb

NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lr": -0.1}, ValueError, "lr=-0.1 must be in [0, inf)"),
        ({"lr": NAN}, ValueError, "lr=nan"),
        ({"lr": float("inf")}, ValueError, "lr=inf"),
        ({"lr": "0.1"}, TypeError, "lr='0.1' must be a number, not str"),
        ({"lr": True}, TypeError, "lr=True"),
        ({"lr": torch.ones(2)}, ValueError, "lr of shape (2,), torch.float32 must be a number or a 0-dim float tensor"),
        ({"lr": torch.tensor(1)}, ValueError, "lr of shape (), torch.int64 must be a number or a 0-dim float tensor"),
        ({"preset": "slow"}, ValueError, "preset='slow' must be one of paper, fast"),
        ({"momentum": 1.0}, ValueError, "momentum=1.0 must be in [0, 1)"),
        ({"momentum": -0.1}, ValueError, "momentum=-0.1"),
        ({"b_mu": 1.5}, ValueError, "b_mu=1.5 must be in [0, 1)"),
        ({"b_nu": NAN}, ValueError, "b_nu=nan"),
        ({"shrinkage": 1.0}, ValueError, "shrinkage=1.0 must be in [0, 1)"),
        ({"b_s": -1}, ValueError, "b_s=-1 must be in [0, 1)"),
        ({"ridge": -1e-9}, ValueError, "ridge=-1e-09 must be in [0, inf)"),
        ({"ridge": None}, TypeError, "ridge=None must be a number"),
        ({"weight_decay": -1}, ValueError, "weight_decay=-1 must be in [0, inf)"),
        ({"min_norm": 0.0}, ValueError, "min_norm=0.0 must be in (0, inf)"),
        ({"cg_iterations": 0}, ValueError, "cg_iterations=0 must be at least 1"),
        ({"cg_iterations": 2.0}, TypeError, "cg_iterations=2.0 must be a whole number"),
        ({"refresh_every": 0}, ValueError, "refresh_every=0"),
        ({"solver": "lu"}, ValueError, "solver='lu' must be one of auto, pcg, cholesky, arrow, matrix_free, dual"),
        ({"cg_scope": "row"}, ValueError, "cg_scope='row' must be one of layer, neuron"),
        (
            {"trust_region": "none"},
            ValueError,
            "trust_region='none' must be one of global, layer, neuron, two_sided, spectral, rms",
        ),
        ({"ridge_mode": 3}, ValueError, "ridge_mode=3 must be one of absolute, relative"),
        ({"others": "sgd"}, ValueError, "others='sgd' must be one of identity, adamw"),
        ({"moment_dtype": torch.int32}, ValueError, "moment_dtype=torch.int32"),
        ({"moment_dtype": torch.float16}, ValueError, "moment_dtype=torch.float16"),
        ({"sample_every": 0}, ValueError, "sample_every=0"),
        ({"max_overhead": 0.0}, ValueError, "max_overhead=0.0 must be in (0, inf)"),
        ({"max_overhead": NAN}, ValueError, "max_overhead=nan"),
        ({"max_overhead": "5%"}, TypeError, "max_overhead='5%' must be a number"),
        (
            {"max_overhead": 0.1, "solver": "dual"},
            ValueError,
            "max_overhead=0.1 has nothing to choose with solver='dual'",
        ),
        ({"max_state_bytes": 0}, ValueError, "max_state_bytes=0 must be at least 1"),
        ({"max_state_bytes": 1e6}, TypeError, "max_state_bytes=1000000.0 must be a whole number"),
        (
            {"max_state_bytes": 9},
            ValueError,
            "max_state_bytes=9 cannot be met: these layers and parameters need at least",
        ),
        ({"rates": 1e9}, TypeError, "rates=1000000000.0 must be a lnb.planning.Rates, not float"),
        ({"nesterov": 1}, TypeError, "nesterov=1 must be True or False"),
        ({"betas": (0.9, 0.99)}, TypeError, "LNB has no setting 'betas'; its settings are"),
        ({"params": []}, ValueError, "empty parameter list"),
        ({"params": [{"params": [], "momentum": 0.5}]}, ValueError, "momentum=0.5 cannot be set per group"),
        ({"params": [{"params": [torch.zeros(1, requires_grad=True)], "lr": -1}]}, ValueError, "lr=-1"),
        ({"params": torch.zeros(3)}, TypeError, "params"),
        (
            {"params": nn.Linear(2, 2).parameters()},
            ValueError,
            "none of the 2 given is a parameter of model=Sequential",
        ),
        ({"exclude": [3]}, TypeError, "exclude=3 must be a torch.nn.Module, not int"),
        ({"exclude": nn.Linear(2, 2)}, TypeError, "exclude"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_constructor(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    model = mixed()
    with pytest.raises(error) as raised:
        lnb.LNB(model, **{"preset": "paper"} | arguments)
    assert words in str(raised.value)
    assert [type(module) for module in model.modules()] == [type(module) for module in mixed().modules()]


@pytest.mark.parametrize("model", [None, [nn.Linear(2, 2)], mixed().parameters(), mixed().state_dict()], ids=type)
def test_model(model: Any) -> None:
    with pytest.raises(TypeError, match=r"(?s)model=.*must be a torch\.nn\.Module.*not its parameters"):
        lnb.LNB(model)
    with pytest.raises(TypeError, match=r"(?s)model=.*must be a torch\.nn\.Module"):
        lnb.attach(model)
    with pytest.raises(TypeError, match=r"(?s)model=.*must be a torch\.nn\.Module"):
        lnb.detach(model)
