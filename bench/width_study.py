"""Does the best learning rate move with width and depth? Trust regions "two_sided" and "spectral" of an MLP on MNIST.

Widths are varied at depth 2 and depths at width 256. For each shape and trust region every learning rate of a grid trains
from the same seed with the same batches, cosine schedule; the rates take turns. The best is the one with the lowest test
loss at the end; "within" is the range of rates whose loss is at most 5 % above it. A run that diverged has no loss, and an
optimum at the edge of the grid is marked with ``*``: the true one may lie outside.

    python bench/width_study.py --data DIR [--steps 60] [--threads 2] [--json FILE]     # about 5 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lnb_bench.training import LoopConfig, OptimizerConfig, TaskOptions, Trainer, TrainingError, make_task

TRUST_REGIONS = ("two_sided", "spectral")
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
SHAPES = ((64, 2), (128, 2), (256, 2), (512, 2), (1024, 2), (256, 4), (256, 8))  # width, depth
NEAR = 1.05


def final_loss(
    shape: tuple[int, int], region: str, lr: float, steps: int, batch_size: int, task: str, data: Path | None
) -> float:
    """Test loss after one run; infinite if it diverged."""
    width, depth = shape
    options = TaskOptions(data=data, width=width, depth=depth)
    config = LoopConfig(steps, batch_size, schedule="cosine", log_every=steps, evaluate_every=steps)
    optimizer = OptimizerConfig("lnb", lr=lr, settings={"trust_region": region})
    try:
        *_, last = Trainer(make_task(task, options), optimizer, config).records()
    except TrainingError:
        return math.inf
    return last.values["loss"] if math.isfinite(last.values["loss"]) else math.inf


def summarise(losses: dict[float, float]) -> dict[str, Any]:
    """Best rate of a grid, the range of rates near it, and whether the optimum is inside the grid."""
    rates = sorted(losses)
    best = min(rates, key=lambda lr: losses[lr])
    if not math.isfinite(losses[best]):
        return {"best_lr": None, "loss": None, "near": [], "inside": False}
    near = [lr for lr in rates if losses[lr] <= NEAR * losses[best]]
    return {"best_lr": best, "loss": losses[best], "near": near, "inside": best not in (rates[0], rates[-1])}


def study(
    shapes: tuple[tuple[int, int], ...],
    rates: tuple[float, ...],
    steps: int,
    batch_size: int,
    task: str,
    data: Path | None,
) -> list[dict[str, Any]]:
    """One row per trust region and shape, printed as it is finished."""
    rows = []
    print(f"{'region':10}{'width':>6}{'depth':>6}{'best lr':>10}{'within':>20}   test loss by lr " + str(list(rates)))
    for shape in shapes:
        losses: dict[str, dict[float, float]] = {region: {} for region in TRUST_REGIONS}
        for lr in rates:
            for region in TRUST_REGIONS:
                losses[region][lr] = final_loss(shape, region, lr, steps, batch_size, task, data)
        for region in TRUST_REGIONS:
            summary = summarise(losses[region])
            best, near = summary["best_lr"], summary["near"]
            shown = "none" if best is None else f"{best:g}" + ("" if summary["inside"] else "*")
            within = f"{near[0]:g}-{near[-1]:g}" if near else ""
            figures = "  ".join(f"{v:.3f}" if math.isfinite(v) else "div." for v in losses[region].values())
            print(f"{region:10}{shape[0]:6}{shape[1]:6}{shown:>10}{within:>20}   {figures}", flush=True)
            finite = {f"{lr:g}": v if math.isfinite(v) else None for lr, v in losses[region].items()}
            rows.append({"region": region, "width": shape[0], "depth": shape[1], **summary, "losses": finite})
    return rows


def main() -> None:
    """Run, print, and say by what factor the best rates differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the MNIST files; default: $LNB_DATA, else fetched")
    parser.add_argument("--task", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("WIDTH", "DEPTH"))
    parser.add_argument("--rate", type=float, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = tuple(tuple(shape) for shape in arguments.shape) if arguments.shape else SHAPES
    rates = tuple(sorted(arguments.rate)) if arguments.rate else RATES
    rows = study(shapes, rates, arguments.steps, arguments.batch_size, arguments.task, arguments.data)
    for region in TRUST_REGIONS:
        best = [row["best_lr"] for row in rows if row["region"] == region and row["best_lr"] is not None]
        if best:
            print(f"{region}: best rates {min(best):g} to {max(best):g}, a factor of {max(best) / min(best):g}")
    if arguments.json:
        facts = {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
        run = {"task": arguments.task, "steps": arguments.steps, "batch_size": arguments.batch_size}
        arguments.json.write_text(
            json.dumps({**facts, **run, "threads": arguments.threads, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
