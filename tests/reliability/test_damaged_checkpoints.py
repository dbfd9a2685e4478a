"""Damaged checkpoints are refused by a named error that changes nothing, or harmless; the full run is ``make reliability``."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from damaged_checkpoints import campaign, trainer_of

from lnb_bench.training import CheckpointError
from lnb_bench.training.structure import require_like


def test_fifty_damaged_checkpoints(tmp_path: Path) -> None:
    fates, wrong = campaign(50, seed=2, folder=tmp_path)
    assert not wrong
    assert fates.total() == 50
    assert sum(count for fate, count in fates.items() if fate.endswith("refused")) >= 40


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": [1]}, "x differs between the checkpoint and this run in its entries b"),
        ({"a": (1, 2), "b": torch.zeros(2)}, r"x.a is of type tuple in the checkpoint and list in this run"),
        ({"a": [1], "b": torch.zeros(2)}, r"x.a has 1 entries in the checkpoint and 2 in this run"),
        ({"a": [1, 2], "b": torch.zeros(2)}, r"x.a\[1\] is of type int in the checkpoint and float in this run"),
        ({"a": [1, float("inf")], "b": torch.zeros(2)}, r"x.a\[1\] is inf in the checkpoint; it must be finite"),
        (
            {"a": [1, 2.0], "b": torch.zeros(3)},
            r"x.b is torch.float32 \[3\] in the checkpoint and torch.float32 \[2\] in",
        ),
    ],
)
def test_structures_that_differ(saved: object, message: str) -> None:
    own = {"a": [1, 0.5], "b": torch.ones(2)}
    require_like("x", copy.deepcopy(own), own)
    with pytest.raises(CheckpointError, match=message):
        require_like("x", saved, own)


def test_a_checkpoint_of_another_rate_is_refused() -> None:
    state = trainer_of("the run").state_dict()
    with pytest.raises(CheckpointError, match=r"settings is .* in the checkpoint and .* in this run"):
        trainer_of("another setting").load_state_dict(state)
    with pytest.raises(CheckpointError, match="batch_size is 128 in the checkpoint and 64 in this run"):
        trainer_of("another batch").load_state_dict(state)
    state["identity"] = {**state["identity"], "lr": 0.7}
    with pytest.raises(CheckpointError, match=r"lr is 0.7 in the checkpoint and 0.4 in this run"):
        trainer_of("the run").load_state_dict(state)


def test_a_state_that_the_optimizer_refuses_changes_nothing() -> None:
    trainer = trainer_of("the run")
    trainer.train_step()
    state = copy.deepcopy(trainer.state_dict())
    broken = copy.deepcopy(state)
    del broken["optimizer"]["parts"][0]["state"][0]["momentum"]
    trainer.train_step()
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*momentum"):
        trainer.load_state_dict(broken)
    after = trainer.state_dict()
    assert after["step"] == 2
    assert all(torch.equal(after["model"][name], value) for name, value in before["model"].items())
    trainer.load_state_dict(state)
    assert trainer.step == 1
