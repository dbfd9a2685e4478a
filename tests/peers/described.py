"""LNB as an ``OptimizerInfo``, PyTorch's description of an optimizer for its tests, and models for such tests."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.testing._internal.common_optimizers import ErrorOptimizerInput, OptimizerInfo, OptimizerInput

import lnb

_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def linear_model(dtype: torch.dtype, device: str = "cpu", contiguous: bool = True) -> nn.Sequential:
    """Two linear layers and a norm: of everything that LNB treats in its own way, one."""
    model = nn.Sequential(nn.Linear(5, 10), nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 4)).to(device, dtype)
    if not contiguous:
        model[0].weight = nn.Parameter(torch.randn(10, 5, 2, dtype=dtype, device=device)[..., 0] / 3)
        model[0].bias = nn.Parameter(torch.randn(10, 2, dtype=dtype, device=device)[..., 0])
    return remembered(model)


def remembered(model: nn.Module) -> Any:
    """``model``, known to :class:`OfParameters`."""
    _models.add(model)
    return model


class OfParameters(lnb.LNB):
    """LNB, constructed as PyTorch's tests construct optimizers: from parameters alone, of a model that is remembered."""

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        given = list(params)
        if not given:
            raise ValueError("optimizer got an empty parameter list")
        one = given[0]["params"] if isinstance(given[0], dict) else given[0]
        one = next(iter(one)) if not isinstance(one, Tensor | tuple) else one
        one = one[1] if isinstance(one, tuple) else one
        found = [model for model in _models if any(one is parameter for parameter in model.parameters())]
        super().__init__(found[0], params=given, **settings)


def _inputs(device: Any) -> list[OptimizerInput]:
    return [
        OptimizerInput(params=None, kwargs={}, desc="default"),
        OptimizerInput(params=None, kwargs={"lr": 0.01}, desc="non-default lr"),
        OptimizerInput(params=None, kwargs={"lr": torch.tensor(0.01)}, desc="Tensor lr"),
        OptimizerInput(params=None, kwargs={"weight_decay": 0.1, "lr": 0.01}, desc="weight decay"),
        OptimizerInput(params=None, kwargs={"preset": "paper", "lr": 0.02, "weight_decay": 0.0}, desc="paper"),
        OptimizerInput(params=None, kwargs={"preset": "full_batch", "lr": 0.05}, desc="full batch"),
        OptimizerInput(params=None, kwargs={"trust_region": "spectral", "lr": 0.01}, desc="spectral"),
        OptimizerInput(params=None, kwargs={"others": "identity", "lr": 0.01}, desc="plain rule for others"),
    ]


def _errors(device: Any, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    def wrong(desc: str, error: type[Exception], words: str, **kwargs: Any) -> ErrorOptimizerInput:
        return ErrorOptimizerInput(
            OptimizerInput(params=None, kwargs=kwargs, desc=desc), error_type=error, error_regex=words
        )

    return [
        wrong("negative lr", ValueError, "lr=-0.5", lr=-0.5),
        wrong("negative weight decay", ValueError, "weight_decay=-0.5", weight_decay=-0.5),
        wrong("a setting that is none", TypeError, "betas", betas=(0.9, 0.99)),
        wrong("momentum out of range", ValueError, "momentum=1.0", momentum=1.0),
        wrong("a Tensor lr of two entries", ValueError, "lr of shape", lr=torch.tensor([0.1, 0.2])),
    ]


DESCRIBED = OptimizerInfo(
    OfParameters,
    optim_inputs_func=_inputs,
    optim_error_inputs_func=_errors,
    scheduler_inputs=(
        [lambda optimizer: lr_scheduler.StepLR(optimizer, gamma=0.9, step_size=10)],
        [
            lambda optimizer: lr_scheduler.StepLR(optimizer, gamma=0.9, step_size=10),
            lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer),
        ],
        [lambda optimizer: lr_scheduler.PolynomialLR(optimizer, power=0.9, total_iters=40)],
    ),
    supported_impls=(),
    not_og_supported_flags=(),
    supports_sparse=False,
    supports_complex=False,
)
