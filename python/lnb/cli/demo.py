"""``lnb demo``: LNB next to AdamW in under a minute, on data that comes with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lnb.cli.display import follow, progress
from lnb.training import LoopConfig, OptimizerConfig, Record, TaskOptions, Trainer, make_task, train


@dataclass(frozen=True)
class Scene:
    """One comparison: a task, the level to reach, and the run's length."""

    title: str
    task: str
    invert: bool
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

    def add(self, record: Record) -> None:
        """Take a record of the run into the curve."""
        self.seconds = record.seconds
        if record.split == "test":
            self.steps.append(record.step)
            self.values.append(record.values[self.metric])

    def steps_to(self, target: float) -> int | None:
        """The first evaluated step at which the metric is at least as good as ``target``."""
        sign = 1.0 if self.higher_is_better else -1.0
        return next((s for s, v in zip(self.steps, self.values, strict=True) if sign * v >= sign * target), None)


SCENES = (
    Scene("digits", "digits", False, target=0.90, steps=330, evaluate_every=5),
    Scene("digits, inverted", "digits", True, target=0.90, steps=330, evaluate_every=5),
    Scene("matrix factorisation", "matrix-factorization", False, target=1e-3, steps=1000, evaluate_every=10),
)

SCHEDULE = "cosine"
# The best of the grids below, chosen beforehand for each optimizer alike: by the mean of the last test metric over the
# seeds 0, 1, 2 (digits: upright and inverted together, as for somebody who does not know which will come; matrix: the
# geometric mean).
RATES = {
    ("digits", "adamw"): 0.03,
    ("digits", "lnb"): 0.05,
    ("digits", "lnb-paper"): 0.3,
    ("matrix-factorization", "adamw"): 0.3,
    ("matrix-factorization", "lnb"): 1.0,
    ("matrix-factorization", "lnb-paper"): 0.1,
}
# The factorisation has no noise: there, LNB runs with the preset for that, at its default rate.
INSTEAD = {("matrix-factorization", "lnb"): "lnb-full-batch"}
GRIDS = {
    "adamw": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "lnb": (0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
    "lnb-paper": (0.01, 0.03, 0.1, 0.3),
}
NAMES = {"adamw": "AdamW", "lnb": "LNB", "lnb-paper": "LNB (paper)"}


def run_demo(out: Path, seed: int, console: Console) -> None:
    """Run all scenes with every optimizer, print the closing table and draw the curves.

    Args:
        out: the picture, a file name that matplotlib can write.
        seed: of initial parameters and data order.
        console: where to show progress.

    Raises:
        TrainingError: the picture cannot be written, or scikit-learn or matplotlib is not installed.
    """
    from lnb.cli.figure import check_writable, draw

    check_writable(out)
    curves: dict[str, list[Curve]] = {}
    with one_thread(), progress(console) as bars:
        for scene in SCENES:
            task = make_task(scene.task, TaskOptions(invert=scene.invert))
            loop = LoopConfig(scene.steps, seed=seed, schedule=SCHEDULE, evaluate_every=scene.evaluate_every)
            for optimizer in NAMES:
                name = INSTEAD.get((scene.task, optimizer), optimizer)
                config = OptimizerConfig(name, lr=RATES[scene.task, optimizer])
                trainer = Trainer(task, config, loop)
                curve = Curve(NAMES[optimizer], task.objective.metric, task.objective.higher_is_better)
                for record in follow(train(trainer), bars, f"{scene.title}: {curve.optimizer}", scene.steps):
                    curve.add(record)
                curves.setdefault(scene.title, []).append(curve)
    console.print(_table(curves))
    console.print(_how_rates_were_chosen(), soft_wrap=True, highlight=False)
    draw(out, SCENES, curves)
    console.print(f"curves: {out}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: models as small as these gain nothing from more, and lose much where a core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _table(curves: dict[str, list[Curve]]) -> Table:
    table = Table(title="LNB next to AdamW")
    table.add_column("task", no_wrap=True)
    table.add_column("optimizer", no_wrap=True)
    for header in ("at end", "target", "steps", "seconds"):
        table.add_column(header, justify="right")
    for scene in SCENES:
        for curve in curves[scene.title]:
            reached = curve.steps_to(scene.target)
            table.add_row(
                scene.title,
                curve.optimizer,
                show(curve, curve.values[-1]),
                show(curve, scene.target),
                "never" if reached is None else str(reached),
                f"{curve.seconds:.1f}",
            )
        table.add_section()
    return table


def show(curve: Curve, value: float) -> str:
    """A value of the curve's metric: per cent correct, or relative error."""
    return f"{value:.1%}" if curve.higher_is_better else f"{value:.1e}"


def _how_rates_were_chosen() -> str:
    grids = "; ".join(f"{NAMES[name]} {', '.join(map(str, grid))}" for name, grid in GRIDS.items())
    chosen = ", ".join(f"{task} {NAMES[name]} {lr}" for (task, name), lr in RATES.items())
    return (
        f"Accuracy or relative error on the test data. {SCHEDULE.capitalize()} schedule from the best learning rate of a grid, "
        f"by the mean over three seeds ({grids}): {chosen}. "
        "On the matrix, LNB runs with its preset for losses without noise, full_batch, at the default rate."
    )
