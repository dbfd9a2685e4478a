"""Wall-clock to a validation value: LNB and Muon against the best value that a tuned AdamW reaches in its budget.

Per task and optimizer the learning rate is the best of a grid of four on the first seed, by the final value; all runs have
the same steps and a cosine schedule. The target is the median over seeds of the best value that AdamW reached. Per seed the
time to target is the training time (evaluation excluded) at the first evaluation that meets it; a run that never does
counts as infinite. Runs are interleaved over optimizers, so that a busy machine disturbs all alike.

    python bench/time_to_target.py --data DIR [--task mnist ...] [--seeds 3] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lnb.training import LoopConfig, OptimizerConfig, Task, TaskOptions, TrainingError, make_task
from lnb.training.loop import Trainer

GRIDS = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2),
    "muon": (3e-3, 1e-2, 2e-2, 4e-2),
    "lnb": (0.02, 0.05, 0.1, 0.2),
}


@dataclass(frozen=True)
class Cell:
    """One task of the study."""

    task: str
    steps: int
    batch_size: int
    evaluations: int
    metric: str
    higher_is_better: bool
    options: dict[str, Any] = field(default_factory=dict)

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is at least as good as ``b``."""
        return a >= b if self.higher_is_better else a <= b


CELLS = {
    "mnist": Cell("mnist", 120, 1000, 12, "accuracy", True),
    "mnist-inverted": Cell("mnist", 120, 1000, 12, "accuracy", True, {"invert": True}),
    "camvid": Cell("camvid", 100, 8, 10, "pixel_accuracy", True, {"size": 64}),
    "shakespeare": Cell("shakespeare", 300, 32, 10, "loss", False, {"width": 64, "depth": 2, "context": 64}),
    "cifar10": Cell("cifar10", 200, 128, 8, "accuracy", True, {"width": 64, "depth": 3}),
}

Curve = list[tuple[float, float]]  # seconds of training, validation value


def run(task: Task, cell: Cell, optimizer: str, lr: float, seed: int) -> Curve:
    """One training run; its curve is empty if it diverged."""
    config = LoopConfig(
        steps=cell.steps,
        batch_size=cell.batch_size,
        seed=seed,
        schedule="cosine",
        log_every=cell.steps,
        evaluate_every=cell.steps // cell.evaluations,
    )
    curve: Curve = []
    try:
        for record in Trainer(task, OptimizerConfig(optimizer, lr=lr), config).records():
            if record.split == "test":
                curve.append((record.seconds, record.values[cell.metric]))
    except TrainingError:
        return []
    return curve if all(math.isfinite(value) for _, value in curve) else []


def seconds_to(curve: Curve, target: float, cell: Cell) -> float:
    """Training time at the first evaluation that meets ``target``."""
    return next((seconds for seconds, value in curve if cell.better(value, target)), math.inf)


def study(name: str, data: Path | None, seeds: int) -> dict[str, Any]:
    """Tune, repeat and compare on one task."""
    cell = CELLS[name]
    task = make_task(cell.task, TaskOptions(data=data, **cell.options))
    curves: dict[tuple[str, float, int], Curve] = {}
    for i in range(4):
        for optimizer, grid in GRIDS.items():
            curves[optimizer, grid[i], 0] = run(task, cell, optimizer, grid[i], 0)
    sign = 1 if cell.higher_is_better else -1
    worst = -math.inf
    tuned = {
        optimizer: max(
            grid, key=lambda lr: sign * curves[optimizer, lr, 0][-1][1] if curves[optimizer, lr, 0] else worst
        )
        for optimizer, grid in GRIDS.items()
    }
    for seed in range(1, seeds):
        for optimizer, lr in tuned.items():
            curves[optimizer, lr, seed] = run(task, cell, optimizer, lr, seed)
    chosen = {optimizer: [curves[optimizer, lr, seed] for seed in range(seeds)] for optimizer, lr in tuned.items()}
    best = max if cell.higher_is_better else min
    target = statistics.median(best(value for _, value in curve) for curve in chosen["adamw"])
    base = statistics.median(seconds_to(curve, target, cell) for curve in chosen["adamw"])
    rows = {}
    for optimizer, runs in chosen.items():
        times = [seconds_to(curve, target, cell) for curve in runs]
        rows[optimizer] = {
            "lr": tuned[optimizer],
            "final": [curve[-1][1] if curve else None for curve in runs],
            "seconds": [curve[-1][0] if curve else None for curve in runs],
            "seconds_to_target": [t if math.isfinite(t) else None for t in times],
            "ratio": statistics.median(times) / base if math.isfinite(base) else math.nan,
        }
    return {
        "cell": cell.__dict__,
        "target": target,
        "optimizers": rows,
        "curves": {str(key): c for key, c in curves.items()},
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=list(CELLS), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
    results: dict[str, Any] = {}
    for name in arguments.task or CELLS:
        results[name] = study(name, arguments.data, arguments.seeds)
        print(f"\n{name}: {CELLS[name].metric} {results[name]['target']:.4f}, the best of tuned AdamW")
        for optimizer, row in results[name]["optimizers"].items():
            final = ", ".join("diverged" if value is None else f"{value:.4f}" for value in row["final"])
            times = ", ".join("never" if t is None else f"{t:.1f} s" for t in row["seconds_to_target"])
            print(
                f"  {optimizer:8} lr {row['lr']:<7g} final {final}   to target {times}   ratio {row['ratio']:.2f}",
                flush=True,
            )
        if arguments.json:  # after every task: what is finished is kept
            text = json.dumps(
                {**facts, "threads": arguments.threads, "seeds": arguments.seeds, "results": results}, indent=1
            )
            arguments.json.write_text(text.replace("NaN", "null").replace("Infinity", "null") + "\n")


if __name__ == "__main__":
    main()
