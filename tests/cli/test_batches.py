"""The data order: every example once per epoch, a pure function of seed and step."""

from __future__ import annotations

import pytest
import torch

from lnb.demo.batches import Batcher


def test_an_epoch_has_every_example_once() -> None:
    batcher = Batcher(12, 4, seed=0)
    assert batcher.per_epoch == 3
    epochs = [torch.cat([batcher.indices(3 * epoch + i) for i in range(3)]) for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_the_rest_of_an_epoch_is_left_out() -> None:
    batcher = Batcher(10, 4, seed=0)
    assert batcher.per_epoch == 2
    assert all(len(batcher.indices(step)) == 4 for step in range(7))


def test_any_step_can_be_asked_first() -> None:
    forward = [Batcher(10, 3, seed=5).indices(step) for step in range(9)]
    one = Batcher(10, 3, seed=5)
    for step in (8, 0, 4, 4, 7, 1):
        assert torch.equal(one.indices(step), forward[step])


def test_seeds_differ_and_do_not_touch_the_global_generator() -> None:
    state = torch.get_rng_state()
    orders = {tuple(Batcher(50, 50 - 1, seed=seed).indices(0).tolist()) for seed in range(5)}
    assert len(orders) == 5
    assert torch.equal(state, torch.get_rng_state())


def test_no_epoch_of_one_seed_is_an_epoch_of_another() -> None:
    batchers = [Batcher(9, 8, seed=seed) for seed in range(4)]
    assert len({tuple(batcher.indices(epoch).tolist()) for batcher in batchers for epoch in range(4)}) == 16


def test_a_full_batch_keeps_the_order() -> None:
    batcher = Batcher(6, 100, seed=1)
    assert batcher.batch_size == 6
    assert batcher.indices(3).tolist() == list(range(6))


@pytest.mark.parametrize(("examples", "batch_size"), [(0, 1), (3, 0)])
def test_empty(examples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Batcher(examples, batch_size, seed=0)
