"""What the demonstration compares: its scenes, the optimizers with their learning rates, and one run of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lnb.config import DEFAULT_LR
from lnb.demo.batches import Batcher
from lnb.demo.problems import Problem, digits, factorization
from lnb.optimizer import LNB


@dataclass(frozen=True)
class Scene:
    """One comparison: a problem, the level to reach, and the run's length.

    Attributes:
        title: the name to show.
        task: the name under which the learning rates are listed.
        problem: makes the problem.
        target: the figure of merit to reach.
        steps: optimizer steps of a run.
        evaluate_every: steps between two evaluations; the first and the last step are evaluated too.
    """

    title: str
    task: str
    problem: Callable[[], Problem]
    target: float
    steps: int
    evaluate_every: int


@dataclass
class Curve:
    """What one optimizer did in a scene: the test metric over steps, and the seconds spent on training."""

    optimizer: str
    metric: str
    higher_is_better: bool
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def steps_to(self, target: float) -> int | None:
        """The first evaluated step at which the metric is at least as good as ``target``."""
        sign = 1.0 if self.higher_is_better else -1.0
        return next((s for s, v in zip(self.steps, self.values, strict=True) if sign * v >= sign * target), None)


SCENES = (
    Scene("digits", "digits", lambda: digits(invert=False), target=0.90, steps=330, evaluate_every=5),
    Scene("digits, inverted", "digits", lambda: digits(invert=True), target=0.90, steps=330, evaluate_every=5),
    Scene("matrix factorisation", "matrix-factorization", factorization, target=1e-3, steps=1000, evaluate_every=10),
)

NAMES = {"adamw": "AdamW", "lnb": "LNB", "lnb-paper": "LNB (paper)"}
# LNB runs as it is, with the default rates of its presets. The others have the best of the grids below, chosen beforehand by the
# mean of the last test metric over the seeds 0, 1, 2 (digits: upright and inverted together, as for somebody who does not
# know which will come; matrix: the geometric mean).
RATES = {
    ("digits", "adamw"): 0.03,
    ("digits", "lnb"): DEFAULT_LR["fast"],
    ("digits", "lnb-paper"): 0.3,
    ("matrix-factorization", "adamw"): 0.3,
    ("matrix-factorization", "lnb"): DEFAULT_LR["full_batch"],
    ("matrix-factorization", "lnb-paper"): 0.1,
}
GRIDS = {
    "adamw": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "lnb-paper": (0.01, 0.03, 0.1, 0.3),
}
# The factorisation has no noise: there, LNB runs with the preset for that.
PRESETS = {
    ("digits", "lnb"): "fast",
    ("digits", "lnb-paper"): "paper",
    ("matrix-factorization", "lnb"): "full_batch",
    ("matrix-factorization", "lnb-paper"): "paper",
}


def run(scene: Scene, problem: Problem, optimizer: str, seed: int) -> Iterator[tuple[int, Curve]]:
    """Train ``problem`` with one of the optimizers of :data:`NAMES`, with a cosine schedule down to zero.

    Args:
        scene: gives length and learning rate.
        problem: what ``scene.problem`` made; several optimizers may share it.
        optimizer: a name in :data:`NAMES`.
        seed: of initial parameters and data order.

    Yields:
        The number of steps made and the curve so far, after every evaluation.
    """
    torch.manual_seed(seed)
    model = problem.build()
    stepper = _optimizer(scene.task, optimizer, model)
    schedule = LambdaLR(stepper, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, scene.steps) / scene.steps)))
    curve = Curve(NAMES[optimizer], problem.metric, problem.higher_is_better)
    x, y = problem.train
    batcher = Batcher(len(x), problem.batch_size, seed)
    for step in range(scene.steps + 1):
        if step % scene.evaluate_every == 0 or step == scene.steps:
            curve.steps.append(step)
            curve.values.append(_evaluate(model, problem))
            yield step, curve
        if step < scene.steps:
            started = time.perf_counter()
            rows = batcher.indices(step)
            stepper.zero_grad()
            problem.loss(model(x[rows]), y[rows]).backward()
            stepper.step()
            schedule.step()
            curve.seconds += time.perf_counter() - started


def _optimizer(task: str, name: str, model: nn.Module) -> Optimizer:
    lr = RATES[task, name]
    return AdamW(model.parameters(), lr) if name == "adamw" else LNB(model, lr, PRESETS[task, name])


@torch.no_grad()
def _evaluate(model: nn.Module, problem: Problem) -> float:
    x, y = problem.test
    return float(problem.figure(model(x), y))
