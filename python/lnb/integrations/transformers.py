"""LNB in ``transformers.Trainer``.

    from lnb.integrations.transformers import optimizer_cls_and_kwargs

    args = TrainingArguments(..., learning_rate=0.4, weight_decay=0.0)
    trainer = Trainer(model, args, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(args), ...)

The Trainer makes the optimizer itself, of the model as it is when training begins, with its own choice of parameters that
decay, its schedulers, and resuming. LNB's ``lr`` has another unit than AdamW's: with the default ``learning_rate`` of 5e-5
a model barely moves. Under ``torchrun`` the Trainer wraps the model in ``DistributedDataParallel``, which LNB finds at the first
step. Where one group is enough, ``Trainer(model, args, optimizers=(lnb.LNB(model), None))`` does too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from lnb.config import DEFAULT_LR
from lnb.optimizer import LNB


def optimizer_cls_and_kwargs(
    arguments: Any, **settings: Any
) -> tuple[Callable[[], Callable[..., LNB]], dict[str, Any]]:
    """What ``Trainer`` takes by this name: a factory, and what it is called with beside the model. Warns of AdamW's default rate.

    Args:
        arguments: the ``TrainingArguments``; ``learning_rate`` and ``weight_decay`` are read.
        settings: what :class:`lnb.LNB` takes beside the model and its parameters; ``lr`` and ``weight_decay`` replace those.
    """
    if "lr" not in settings and arguments.learning_rate == getattr(type(arguments), "learning_rate", None):
        given = f"learning_rate={arguments.learning_rate!r}"
        warnings.warn(
            f"{given} is the default, for AdamW; LNB's rates are larger: set it, to {DEFAULT_LR['fast']} at first",
            stacklevel=2,
        )
    return _factory, {"lr": arguments.learning_rate, "weight_decay": arguments.weight_decay, **settings}


def create_optimizer(model: nn.Module, *, weight_decay: float, **settings: Any) -> LNB:
    """An LNB of all that moves, in two groups: what Trainer lets decay, and the rest. Raises what :class:`lnb.LNB` raises."""
    from transformers import Trainer

    decaying = set(Trainer.get_decay_parameter_names(cast(Any, None), model))  # of the model's names alone
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in decaying]["params"].append(parameter)
    return LNB(model, params=[group for group in groups if group["params"]], **settings)


def _factory() -> Callable[..., LNB]:
    """``Trainer`` calls what it is given without arguments, if that is no class of an optimizer."""
    return create_optimizer
