"""The check of a saved state before any of it is taken over: a digest proves that a file is whole, not that it fits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lnb.state.portable import PROGRESS
from lnb_bench.training.errors import CheckpointError
from lnb_bench.training.records import is_count, is_number, shortened
from lnb_bench.training.structure import require_entries, require_equal, require_like

# What the schedule or every step moves: LNB's progress, and what Schedule-Free AdamW weighs its average by.
_MOVED = ("lr", PROGRESS, "weight_sum", "lr_max", "train_mode")


def check_state(saved: Any, mine: dict[str, Any]) -> None:
    """Require that ``saved`` can be taken over by a trainer whose own state is ``mine``.

    Checked are task, model and data order, the types and shapes of everything, the settings of the optimizers, and that the
    schedules stand at the saved step.

    Raises:
        CheckpointError: it does not fit; the message says what differs.
    """
    require_entries("the checkpoint", saved, tuple(mine))
    for kind in ("identity", "order"):
        require_entries(kind, saved[kind], ())
        for name, value in mine[kind].items():
            require_equal(name, saved[kind].get(name), value)
    for name in ("step", "loss_count"):
        if not is_count(saved[name]):
            raise CheckpointError(f"{name} is {shortened(saved[name])} in the checkpoint, must be a whole number")
    if not (is_number(saved["seconds"]) and 0 <= saved["seconds"] < math.inf):
        raise CheckpointError(f"seconds is {shortened(saved['seconds'])} in the checkpoint, must be a finite number")
    require_like("loss_sum", saved["loss_sum"], mine["loss_sum"])
    _check_model(saved["model"], mine["model"])
    _check_random(saved["random"], mine["random"])
    _check_optimizer(saved["optimizer"], mine["optimizer"], saved["step"])


def _check_model(saved: Any, mine: dict[str, Tensor]) -> None:
    require_entries("model", saved, ())
    for name in [*mine, *saved]:
        shapes = [
            tuple(tensors[name].shape) if isinstance(tensors.get(name), Tensor) else "absent"
            for tensors in (saved, mine)
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"parameter {name!r} is {shapes[0]} in the checkpoint and {shapes[1]} in this run's model"
            )
        require_like(f"parameter {name!r}", saved[name], mine[name])


def _check_random(saved: Any, mine: dict[str, Any]) -> None:
    require_entries("random", saved, tuple(mine))
    require_like("random state of cpu", saved["cpu"], mine["cpu"])
    devices = saved["cuda"]
    fits = isinstance(devices, list) and all(isinstance(r, Tensor) and r.dtype == torch.uint8 for r in devices)
    if not fits:
        raise CheckpointError(f"random state of cuda is {type(devices).__name__} in the checkpoint, must be tensors")


def _check_optimizer(saved: Any, mine: dict[str, Any], step: int) -> None:
    require_entries("optimizer", saved, tuple(mine))
    for kind in ("parts", "schedulers"):
        if not isinstance(saved[kind], list) or len(saved[kind]) != len(mine[kind]):
            count = len(saved[kind]) if isinstance(saved[kind], list) else shortened(saved[kind])
            raise CheckpointError(f"it is the state of {count} optimizers, this run has {len(mine[kind])}")
    for scheduler, own in zip(saved["schedulers"], mine["schedulers"], strict=True):
        require_entries("scheduler", scheduler, tuple(own))
        require_like("scheduler", {name: scheduler[name] for name in own}, own)
        require_equal("learning rate at the start", scheduler["base_lrs"], own["base_lrs"])
        if scheduler["last_epoch"] != step or scheduler["_step_count"] != step + 1:
            raise CheckpointError(
                f"step is {step} in the checkpoint and {shortened(scheduler['last_epoch'])} in its schedule"
            )
    for part, own in zip(saved["parts"], mine["parts"], strict=True):
        require_entries("optimizer", part, ("state", "param_groups"))
        groups = part["param_groups"]
        if not isinstance(groups, list) or len(groups) != len(own["param_groups"]):
            raise CheckpointError("the optimizer has another number of parameter groups in the checkpoint")
        for group, own_group in zip(groups, own["param_groups"], strict=True):
            require_entries("parameter group", group, ("lr", "params"))
            if not is_number(group["lr"]) or not math.isfinite(group["lr"]):
                raise CheckpointError(f"lr is {shortened(group['lr'])} in the checkpoint, must be a finite number")
            for name, value in own_group.items():
                if name not in _MOVED and name in group:  # another torch may know other settings
                    require_equal(name, group[name], value)


def check_moments(saved: dict[str, Any], parameters: list[Tensor], names: tuple[str, ...]) -> None:
    """Require that the state of one of torch's own optimizers is whole and has the shapes of its parameters.

    torch takes any state over, and fails in the step after it, or begins anew where something is missing.

    Args:
        saved: the optimizer's ``state_dict``.
        parameters: what it moves, in order.
        names: what it keeps of every parameter once it has made a step; empty: nothing is awaited.

    Raises:
        CheckpointError: it does not fit.
    """
    require_entries("optimizer state", saved["state"], ())
    for index in saved["state"]:
        if index not in range(len(parameters)):
            raise CheckpointError(
                f"it has optimizer state of parameter {shortened(index)}, of {len(parameters)} parameters"
            )
    for index, parameter in enumerate(parameters):
        if index not in saved["state"] and not names:
            continue
        moments = saved["state"].get(index)
        require_entries(f"optimizer state of parameter {index}", moments, names)
        for name, value in moments.items():
            if value is None and name not in names:
                continue
            shape = () if name in ("step", "mu_product") else tuple(parameter.shape)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                has = tuple(value.shape) if isinstance(value, Tensor) else shortened(value)
                raise CheckpointError(
                    f"optimizer state {shortened(name)} of parameter {index} is {has} in the checkpoint, must be {shape}"
                )
