"""LNB in torchtitan's container: its groups, its flat checkpoints, and a second optimizer beside it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizer.small_models import batches, equal_parameters, loss_of, mixed, train
from torch import nn

import lnb

pytest.importorskip("torchtitan", reason="torchtitan is not installed")
titan = pytest.importorskip(
    "lnb.integrations.torchtitan", reason="torchtitan does not import here", exc_type=ImportError
)


def group(pattern: str, name: str = "LNB", **settings: Any) -> Any:
    from torchtitan.components.optimizer import ParamGroupConfig

    return ParamGroupConfig(pattern=pattern, optimizer_name=name, optimizer_kwargs=settings)


def container(model: nn.Module, *groups: Any, **settings: Any) -> Any:
    config = titan.OptimizersContainer.Config(
        implementation="for-loop", param_groups=list(groups), optimizer_factory_kwargs_by_name={"LNB": settings}
    )
    return config.build(model_parts=[model])


def test_each_step_is_that_of_a_plain_loop() -> None:
    model = mixed()
    optimizers = container(model, group(r"bias$", lr=0.02), group(".*", lr=0.05, weight_decay=0.1), preset="paper")
    assert isinstance(optimizers, titan.OptimizersContainer)
    train(model, optimizers, batches(4))
    by_hand = mixed()
    biases = [p for name, p in by_hand.named_parameters() if name.endswith("bias")]
    others = [p for name, p in by_hand.named_parameters() if not name.endswith("bias")]
    groups = [{"params": biases, "lr": 0.02}, {"params": others, "lr": 0.05, "weight_decay": 0.1}]
    train(by_hand, lnb.LNB(by_hand, preset="paper", params=groups), batches(4))
    assert equal_parameters(model, by_hand)


@pytest.mark.parametrize("steps", [0, 1, 12])
def test_flat_checkpoints(steps: int) -> None:
    """Named by parameter, and loaded into a container that has made no step: as torchtitan resumes."""
    model, other = mixed(), mixed()
    first, second = (container(m, group(".*", lr=0.05)) for m in (model, other))
    train(model, first, batches(steps))
    saved = copy.deepcopy(first.state_dict())
    assert "state.0.weight.momentum" in saved
    other.load_state_dict(model.state_dict())
    second.load_state_dict(saved)
    train(model, first, batches(3, seed=7))
    train(other, second, batches(3, seed=7))
    assert equal_parameters(model, other)


def test_another_optimizer_beside_it() -> None:
    model = mixed()
    optimizers = container(model, group(r"^4\.", "AdamW", lr=1e-3), group(".*", lr=0.05))
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["AdamW", "LNB"]
    before = loss_of(model, batches(1)[0]).item()
    train(model, optimizers, batches(1) * 8)
    assert loss_of(model, batches(1)[0]).item() < before
    assert torch.isfinite(model[4].weight).all()
