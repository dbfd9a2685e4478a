"""The loop: what is recorded when, that a run repeats bit for bit, and that it resumes bit for bit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from lnb_bench.training import OPTIMIZERS, CheckpointError, Diverged, LoopConfig, OptimizerConfig, Record, Task, Trainer


def values(records: list[Record]) -> list[tuple[Any, ...]]:
    """The records without the time."""
    return [(record.step, record.epoch, record.split, record.values) for record in records]


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_which_records_are_made(tiny_task: Task) -> None:
    config = LoopConfig(steps=13, log_every=5, evaluate_every=6)
    records = list(Trainer(tiny_task, OptimizerConfig("sgd", lr=0.01), config).records())
    assert [(record.split, record.step) for record in records] == [
        ("test", 0), ("train", 5), ("test", 6), ("train", 10), ("test", 12), ("train", 13), ("test", 13),
    ]  # fmt: skip
    assert records[2].epoch == pytest.approx(1.0)
    assert records[-1].seconds > 0


def test_the_training_record_is_the_mean_loss(tiny_task: Task) -> None:
    trainer = Trainer(tiny_task, OptimizerConfig("sgd", lr=0.0), LoopConfig(steps=6, log_every=6))
    losses = []
    for step in range(6):
        x, y = tiny_task.train.batch(trainer.batcher.indices(step), trainer.device)
        losses.append(tiny_task.objective.loss(trainer.model(x), y).item())
    train = [record for record in trainer.records() if record.split == "train"]
    assert train[0].values["loss"] == pytest.approx(sum(losses) / 6, rel=1e-6)


def test_evaluation_covers_every_example(tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny_task, OptimizerConfig("sgd"), LoopConfig(steps=1))
    whole = trainer.evaluate()
    monkeypatch.setattr("lnb_bench.training.loop.EVALUATION_BATCH", 7)
    assert trainer.evaluate() == pytest.approx(whole, rel=1e-6)
    assert trainer.model.training


def test_a_seed_decides_everything(tiny_task: Task) -> None:
    runs = []
    for seed in (4, 4, 5):
        trainer = Trainer(tiny_task, OptimizerConfig("adamw", lr=0.01), LoopConfig(steps=20, seed=seed))
        runs.append((values(list(trainer.records())), parameters(trainer)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert runs[0][0] != runs[2][0]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_bit_identical(tiny_task: Task, optimizer: str, schedule: str) -> None:
    noisy = dataclasses.replace(tiny_task, build=lambda: nn.Sequential(nn.Dropout(0.2), tiny_task.build()))
    config = LoopConfig(steps=20, log_every=3, evaluate_every=4, schedule=schedule, clip_norm=1.0)
    setting = OptimizerConfig(optimizer, lr=0.01)
    whole = Trainer(noisy, setting, config)
    wanted = list(whole.records())

    states: dict[int, dict[str, Any]] = {}
    first = Trainer(noisy, setting, config)

    def keep() -> None:
        if first.step == 11:
            state = first.state_dict()
            states[11] = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, state)

    list(first.records(after_step=keep))
    torch.manual_seed(99)
    second = Trainer(noisy, setting, config)
    second.load_state_dict(states[11])
    rest = list(second.records())
    assert values(rest) == values([record for record in wanted if record.step > 11])
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(second), strict=True))


def test_clipping(tiny_task: Task) -> None:
    trainer = Trainer(tiny_task, OptimizerConfig("sgd", lr=0.1), LoopConfig(steps=1, clip_norm=1e-3))
    before = parameters(trainer)
    trainer.train_step()
    moved = sum(float((a - b).square().sum()) for a, b in zip(parameters(trainer), before, strict=True)) ** 0.5
    assert moved == pytest.approx(1e-4, rel=1e-2)


def test_divergence_is_an_error(tiny_task: Task) -> None:
    trainer = Trainer(tiny_task, OptimizerConfig("sgd", lr=1e9), LoopConfig(steps=50))
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+: the run has diverged; lower"):
        list(trainer.records())
    assert trainer.step < 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'adamw' in the checkpoint and 'sgd' in this run"),
        ({"batch_size": 4}, "batch_size is 8 in the checkpoint and 4 in this run"),
        ({"seed": 1}, "seed is 0 in the checkpoint and 1 in this run"),
        ({"hidden": 9}, r"parameter '0.weight' is \(7, 5\) in the checkpoint and \(9, 5\) in this run's model"),
    ],
)
def test_state_of_another_run_changes_nothing(tiny_task: Task, change: dict[str, Any], message: str) -> None:
    state = Trainer(tiny_task, OptimizerConfig("adamw"), LoopConfig(steps=5)).state_dict()
    hidden = change.get("hidden", 7)
    task = dataclasses.replace(
        tiny_task, build=lambda: nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    )
    config = LoopConfig(steps=5, seed=change.get("seed", 0), batch_size=change.get("batch_size", 8))
    other = Trainer(task, OptimizerConfig(change.get("optimizer", "adamw")), config)
    before = parameters(other)
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(state)
    assert other.step == 0
    assert all(torch.equal(a, b) for a, b in zip(parameters(other), before, strict=True))


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"batch_size": 0}, {"log_every": 0}, {"evaluate_every": -1}, {"clip_norm": 0.0}]
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        LoopConfig(**{"steps": 5, **bad})


def test_nan_clip_is_rejected() -> None:
    with pytest.raises(ValueError, match="clip_norm=nan"):
        LoopConfig(steps=5, clip_norm=math.nan)
