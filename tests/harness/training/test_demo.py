"""The demo of the library against the harness: two loops over the same problems give the same curves."""

from __future__ import annotations

import dataclasses

import pytest

from lnb.demo.comparison import RATES, SCENES, run
from lnb_bench.training import LoopConfig, OptimizerConfig, TaskOptions, Trainer, make_task, train


@pytest.mark.parametrize("optimizer", ["adamw", "lnb", "lnb-paper"])
@pytest.mark.parametrize("place", range(len(SCENES)))
def test_the_demo_gives_the_curves_of_the_harness(place: int, optimizer: str) -> None:
    scene = dataclasses.replace(SCENES[place], steps=25, evaluate_every=10)
    task = make_task(scene.task, TaskOptions(invert="inverted" in scene.title))
    name = "lnb-full-batch" if (scene.task, optimizer) == ("matrix-factorization", "lnb") else optimizer
    loop = LoopConfig(scene.steps, seed=3, schedule="cosine", evaluate_every=scene.evaluate_every)
    trainer = Trainer(task, OptimizerConfig(name, lr=RATES[scene.task, optimizer]), loop)
    records = [record for record in train(trainer) if record.split == "test"]
    *_, (_, curve) = run(scene, scene.problem(), optimizer, seed=3)
    assert curve.steps == [record.step for record in records] == [0, 10, 20, 25]
    assert curve.values == pytest.approx([record.values[task.objective.metric] for record in records], rel=1e-6)
    assert curve.metric == task.objective.metric
    assert curve.higher_is_better == task.objective.higher_is_better
