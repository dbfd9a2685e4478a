"""LNB on timm's parameter groups and under its schedulers, with one of its models."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from optimizer.small_models import equal_parameters
from torch import nn

import lnb
from lnb.integrations.timm import create_optimizer


def vit(timm: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    return model


def step(model: nn.Module, optimizer: lnb.LNB, number: int) -> None:
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), torch.arange(6) % 3).backward()
    optimizer.step()


def test_decay_is_that_of_timms_own_optimizers(timm: Any) -> None:
    model = vit(timm)
    optimizer = create_optimizer(model, 0.1, 0.05, no_weight_decay=["head.weight"])
    own = timm.optim.create_optimizer_v2(vit(timm), "adamw", weight_decay=0.05)

    def decays(optimizer: Any, model: nn.Module) -> set[str]:
        names = {p.data_ptr(): name for name, p in model.named_parameters()}
        return {
            names[p.data_ptr()] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
        }

    other = vit(timm)
    own = timm.optim.create_optimizer_v2(other, "adamw", weight_decay=0.05)
    assert decays(optimizer, model) == decays(own, other) - {"head.weight"}
    assert "pos_embed" in model.no_weight_decay()  # type: ignore[operator]
    assert "pos_embed" not in decays(optimizer, model)
    step(model, optimizer, 0)
    assert optimizer.diagnostics() == {"steps": 1, "skipped_steps": 0}


def test_layer_decay_is_applied_once_by_timms_schedulers(timm: Any) -> None:
    model, other = vit(timm), vit(timm)
    optimizer = create_optimizer(model, 0.08, 0.1, layer_decay=0.5)
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert sorted(set(scales)) == [0.125, 0.25, 0.5, 1.0]
    scheduler = importlib.import_module("timm.scheduler").CosineLRScheduler(optimizer, t_initial=4)
    names = {p: name for name, p in model.named_parameters()}
    by_hand = lnb.LNB(
        other,
        params=[
            {"params": [other.get_parameter(names[p]) for p in group["params"]], "weight_decay": group["weight_decay"]}
            for group in optimizer.param_groups
        ],
    )
    for number in range(3):
        lrs = [group["lr"] for group in optimizer.param_groups]
        assert lrs == pytest.approx([max(lrs) * scale for scale in scales])
        for group, lr in zip(by_hand.param_groups, lrs, strict=True):
            group["lr"] = lr
        step(model, optimizer, number)
        step(other, by_hand, number)
        scheduler.step(number + 1)
    assert equal_parameters(model, other)


def test_states_with_timms_groups_are_saved_and_loaded(timm: Any) -> None:
    model, other = vit(timm), vit(timm)
    optimizer, restored = (create_optimizer(m, 0.1, 0.05, layer_decay=0.75) for m in (model, other))
    step(model, optimizer, 0)
    other.load_state_dict(model.state_dict())
    restored.load_state_dict(optimizer.state_dict())
    step(model, optimizer, 1)
    step(other, restored, 1)
    assert equal_parameters(model, other)
