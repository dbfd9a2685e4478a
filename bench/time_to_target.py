"""Time to a validation value: LNB and Muon against the best value that a tuned AdamW reaches in its budget.

Per task and optimizer the learning rate is tuned on the first seed, by the final value in the full budget, over a grid of four
that is extended while its best value is at an edge. The target is the median over seeds of the best value that AdamW reached
in the full budget. Time to target is training time (evaluation excluded) until the first evaluation that meets it, the
shortest over schedules: a user who wants to be at the target soon lets the cosine end there, so every optimizer, AdamW too, is
also run in 1/2, 1/4, 1/8 and 1/16 of the budget. A run that never meets the target counts as infinite. Runs are interleaved
over optimizers, so that a busy machine disturbs all alike; ``--clock cpu`` counts processor time instead (with one thread).

    python bench/time_to_target.py --data DIR [--task mnist ...] [--seeds 3] [--threads 2] [--clock cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import timing
import torch

import lnb_kernels
from lnb_bench.training import LoopConfig, OptimizerConfig, Task, TaskOptions, TrainingError, make_task
from lnb_bench.training.loop import Trainer

GRIDS = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2),
    "muon": (3e-3, 1e-2, 2e-2, 4e-2),
    "lnb": (0.1, 0.2, 0.4, 0.8),
}
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)


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

    def best(self, values: list[float]) -> float:
        """The best of ``values``; the worst there can be if there are none."""
        return max(values, default=-math.inf) if self.higher_is_better else min(values, default=math.inf)


CELLS = {
    "mnist": Cell("mnist", 120, 1000, 12, "accuracy", True),
    "mnist-inverted": Cell("mnist", 120, 1000, 12, "accuracy", True, {"invert": True}),
    "camvid": Cell("camvid", 100, 8, 10, "pixel_accuracy", True, {"size": 64}),
    "shakespeare": Cell("shakespeare", 300, 32, 10, "loss", False, {"width": 64, "depth": 2, "context": 64}),
    "cifar10": Cell("cifar10", 160, 128, 8, "accuracy", True, {"width": 64, "depth": 2}),
}

Curve = list[tuple[float, float]]  # seconds of training, validation value


class Study:
    """All runs of one task."""

    def __init__(self, cell: Cell, task: Task, clock: Callable[[], float]) -> None:
        self.cell, self.task, self.clock = cell, task, clock
        self.curves: dict[tuple[str, float, int, float], Curve] = {}  # by optimizer, lr, seed, share of the budget

    def run(self, optimizer: str, lr: float, seed: int, share: float) -> Curve:
        """One training run, made once; its curve is empty if it diverged."""
        key = (optimizer, lr, seed, share)
        if key not in self.curves:
            self.curves[key] = self._train(*key)
        return self.curves[key]

    def _train(self, optimizer: str, lr: float, seed: int, share: float) -> Curve:
        cell = self.cell
        steps = max(1, round(cell.steps * share))
        config = LoopConfig(
            steps=steps,
            batch_size=cell.batch_size,
            seed=seed,
            schedule="cosine",
            log_every=steps,
            evaluate_every=max(1, steps // cell.evaluations),
        )
        curve: Curve = []
        try:
            trainer = Trainer(self.task, OptimizerConfig(optimizer, lr=lr), config, self.clock)
            for record in trainer.records():
                if record.split == "test":
                    curve.append((record.seconds, record.values[cell.metric]))
        except TrainingError:
            return []
        return curve if all(math.isfinite(value) for _, value in curve) else []

    def final(self, optimizer: str, lr: float) -> float:
        """The final value of the first seed in the full budget."""
        curve = self.run(optimizer, lr, 0, 1.0)
        return self.cell.best([curve[-1][1]] if curve else [])

    def tune(self) -> dict[str, float]:
        """The best rate of every optimizer."""
        grids = {optimizer: list(grid) for optimizer, grid in GRIDS.items()}
        for i in range(4):
            for optimizer, grid in grids.items():
                self.final(optimizer, grid[i])
        tuned = {}
        for optimizer, grid in grids.items():
            for _ in range(3):
                values = [self.final(optimizer, lr) for lr in grid]
                best = grid[values.index(self.cell.best(values))]
                if best == grid[0]:
                    grid.insert(0, best / 3)
                elif best == grid[-1]:
                    grid.append(best * 3)
                else:
                    break
            tuned[optimizer] = best
        return tuned

    def seconds_to(self, optimizer: str, lr: float, seed: int, target: float) -> tuple[float, float]:
        """The shortest time to ``target`` over all schedules, and that schedule's share of the budget."""
        found = []
        for share in SHARES:
            curve = self.run(optimizer, lr, seed, share)
            met = [seconds for seconds, value in curve if self.cell.better(value, target)]
            found.append((met[0] if met else math.inf, share))
        return min(found)


def study(name: str, data: Path | None, seeds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Tune, repeat and compare on one task."""
    cell = CELLS[name]
    runs = Study(cell, make_task(cell.task, TaskOptions(data=data, **cell.options)), clock)
    tuned = runs.tune()
    for seed in range(seeds):
        for share in SHARES:
            for optimizer, lr in tuned.items():
                runs.run(optimizer, lr, seed, share)
    best = [cell.best([v for _, v in runs.run("adamw", tuned["adamw"], seed, 1.0)]) for seed in range(seeds)]
    target = statistics.median(best)
    rows = {}
    for optimizer, lr in tuned.items():
        times = [runs.seconds_to(optimizer, lr, seed, target) for seed in range(seeds)]
        full = [runs.run(optimizer, lr, seed, 1.0) for seed in range(seeds)]
        rows[optimizer] = {
            "lr": lr,
            "final": [curve[-1][1] if curve else None for curve in full],
            "seconds": [curve[-1][0] if curve else None for curve in full],
            "seconds_to_target": [seconds if math.isfinite(seconds) else None for seconds, _ in times],
            "budget_share": [share for _, share in times],
            "median": statistics.median(seconds for seconds, _ in times),
        }
    base = rows["adamw"]["median"]
    for row in rows.values():
        row["ratio"] = row["median"] / base if math.isfinite(base) else math.nan
    curves = {str(key): [(round(s, 4), v) for s, v in curve] for key, curve in runs.curves.items()}
    return {"cell": cell.__dict__, "target": target, "optimizers": rows, "curves": curves}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=list(CELLS), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments, clock = timing.parse(parser)
    facts = {
        "date": date.today().isoformat(),
        "lnb": lnb_kernels.__version__,
        "torch": torch.__version__,
        "threads": arguments.threads,
        "clock": arguments.clock,
        "seeds": arguments.seeds,
    }
    results: dict[str, Any] = {}
    for name in arguments.task or CELLS:
        results[name] = study(name, arguments.data, arguments.seeds, clock)
        print(f"\n{name}: {CELLS[name].metric} {results[name]['target']:.4f}, the best of tuned AdamW")
        for optimizer, row in results[name]["optimizers"].items():
            final = ", ".join("diverged" if value is None else f"{value:.4f}" for value in row["final"])
            times = ", ".join("never" if t is None else f"{t:.1f} s" for t in row["seconds_to_target"])
            print(
                f"  {optimizer:8} lr {row['lr']:<7.3g} final {final}   to target {times}   ratio {row['ratio']:.3f}",
                flush=True,
            )
        if arguments.json:  # after every task: what is finished is kept
            text = json.dumps({**facts, "results": results}, indent=1)
            arguments.json.write_text(text.replace("NaN", "null").replace("Infinity", "null") + "\n")


if __name__ == "__main__":
    main()
