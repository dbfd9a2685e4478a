"""What the default preset's numbers are worth: each changed alone, beside the default, on three small tasks.

    python bench/defaults_study.py --data DIR [--seeds 4] [--json bench/results/defaults.json] [--page docs/presets.md]

Each run trains at ``lr=0.4`` with a cosine schedule and is judged by the loss on test examples. A change and the default share
a seed's start and batches, so the table has the mean of their differences, with its standard error. Changes are not tuned:
another rate could suit them better. Results are kept after every run, and a run that was broken off goes on where it stood.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any

import torch
from gptq_study import Cell, arguments_of, begun, keep
from moments_study import filled

import lnb_kernels
from lnb_bench.training.data.splits import FirstExamples
from lnb_bench.training.loop import LoopConfig, Trainer
from lnb_bench.training.optimizers import OptimizerConfig
from lnb_bench.training.tasks import Task

BEGIN, END = "<!-- table of bench/defaults_study.py -->", "<!-- end of table of bench/defaults_study.py -->"
LR = 0.4
CHANGES: dict[str, tuple[Any, ...]] = {
    "lr": (0.2, 0.8),
    "momentum": (0.8, 0.95),
    "nesterov": (False,),
    "damping": ("none",),
    "b_rows": (0.8, 0.99),
    "max_relative_change": (1.0, None),
    "ridge": (0.05, 0.8),
    "sample_ridge": (1.0, 16.0),
    "data_ridge": (0.0, 8.0),
    "block_size": (48, None),
    "refresh_every": (3, 30),
    "staggered": (False,),
    "b_s": (0.6, 0.97),
    "others_lr": (0.05, 0.5),
    "b_others": (0.9, 0.999),
}
DEFAULT = "default"


CELLS = {
    "mlp": Cell("MLP 784-128-128-10, MNIST", "mnist", 150, 128, 2000, {"width": 128, "depth": 2}),
    "unet": Cell("UNet, 8 base channels, CamVid", "camvid", 100, 8, 100, {"width": 8, "depth": 2, "size": 32}),
    "gpt": Cell(
        "GPT, 2 blocks of width 64, Shakespeare", "shakespeare", 150, 16, 128, {"width": 64, "depth": 2, "context": 64}
    ),
}


def variants() -> dict[str, dict[str, Any]]:
    """The settings of every row, by its name; the default comes first."""
    changed = {f"{name}={value}": {name: value} for name, values in CHANGES.items() for value in values}
    return {DEFAULT: {}, **changed}


def final_loss(cell: Cell, task: Task, settings: dict[str, Any], seed: int, optimizer: str = "lnb") -> float:
    """Of one training."""
    settings = dict(settings)
    config = LoopConfig(cell.steps, cell.batch_size, seed, "cosine")
    trainer = Trainer(task, OptimizerConfig(optimizer, lr=settings.pop("lr", LR), settings=settings), config)
    for _ in range(cell.steps):
        trainer.train_step()
    trainer.model.eval()
    split, sums = FirstExamples(task.test, cell.tested), []
    with torch.no_grad():
        for indices in torch.arange(len(split)).split(64):
            inputs, targets = split.batch(indices, torch.device("cpu"))
            sums.append(task.objective.sums(trainer.model(inputs), targets))
    return float(task.objective.summary(torch.stack(sums).sum(0))["loss"])


def difference(changed: list[float], default: list[float]) -> tuple[float, float]:
    """Mean of the paired differences in per cent of the default's loss, and its standard error."""
    pairs = [100 * (c / d - 1) for c, d in zip(changed, default, strict=True)]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    return statistics.fmean(pairs), error


def shown(changed: list[float], default: list[float]) -> str:
    """A cell of the table; a change that a model does not have changes no bit."""
    if changed == default:
        return "no effect"
    mean, error = difference(changed, default)
    return f"{mean:+.1f} ± {error:.1f}"


def table(kept: dict[str, Any], cells: Mapping[str, Cell], rows: Iterable[str], changed: str, default: str) -> str:
    """The differences that each of ``rows`` makes, in a column for every model; ``changed`` and ``default`` are said of them."""
    found = kept["losses"]
    seeds = min(len(losses) for of_cell in found.values() for losses in of_cell.values())
    said = f"Changes of the test loss in per cent: below zero, the change is better. Means of {seeds} paired differences ± their"
    lines = [
        f"{said} standard error; lnb {kept['lnb']}, torch {kept['torch']}, {kept['date']}.",
        "",
        f"| {changed} | {' | '.join(cells[name].title for name in found)} |",
        "| --- " * (len(found) + 1) + "|",
        f"| {default} | {' | '.join(f'{statistics.fmean(of_cell[DEFAULT]):.3g}' for of_cell in found.values())} |",
    ]
    for row in rows:
        if row != DEFAULT:
            columns = (shown(of_cell[row], of_cell[DEFAULT]) for of_cell in found.values())
            lines.append(f"| `{row}` | {' | '.join(columns)} |")
    return "\n".join(lines)


def tables(kept: dict[str, Any]) -> str:
    """The page's table: a row for every change, a column for every model."""
    return table(kept, CELLS, variants(), "changed", "the default's loss")


def study(
    description: str | None,
    cells: Mapping[str, Cell],
    rows: Mapping[str, Any],
    loss: Callable[[Cell, Task, Any, int], float],
    tables: Callable[[dict[str, Any]], str],
    marks: tuple[str, str],
) -> None:
    """Train every one of ``rows`` on every cell and seed, as ``loss`` does; keep the losses, and show and write the table."""
    arguments = arguments_of(description, cells, seeds=4)
    made = {"date": date.today().isoformat(), "torch": torch.__version__, "lnb": lnb_kernels.__version__}
    kept = begun(arguments.json, {**made, "losses": {}})
    tasks = {name: cells[name].make(arguments.data) for name in arguments.cells}
    started = time.process_time()
    for seed in range(arguments.seeds):
        for name, task in tasks.items():
            losses = kept["losses"].setdefault(name, {})
            for row, change in rows.items():
                own = losses.setdefault(row, [])
                if len(own) <= seed:
                    own.append(loss(cells[name], task, change, seed))
                    keep(arguments.json, kept)
            print(f"seed {seed}, {name}: {time.process_time() - started:.0f} s", flush=True)
    print(tables(kept))
    if arguments.page:
        arguments.page.write_text(filled(arguments.page.read_text(), tables(kept), *marks))


def main() -> None:
    study(__doc__, CELLS, variants(), final_loss, tables, (BEGIN, END))


if __name__ == "__main__":
    main()
