"""GPTQ from what LNB kept while it trained, beside GPTQ from calibration data and rounding: a GPT, a ViT and a UNet.

    python bench/gptq_study.py --data DIR [--seeds 5] [--json bench/results/gptq.json] [--page docs/moments.md]

Each model trains by the default ``lnb.LNB`` (cosine schedule, ``lr=0.1``) on real data: Shakespeare's characters, CIFAR-10,
CamVid. Then every layer with a moment is put on 2, 3 or 4 bits, a grid for each neuron's whole row. Calibration samples
are the first of a seeded shuffle of the training split: windows of text, or images. Results are kept after every training, so
that a run that was broken off goes on where it stood.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from moments_study import filled, spread
from torch import Tensor, nn

import lnb
from lnb.moments import Moments, quantize
from lnb_bench.training.data.splits import FirstExamples
from lnb_bench.training.loop import LoopConfig, Trainer
from lnb_bench.training.optimizers import OptimizerConfig
from lnb_bench.training.tasks import Task, TaskOptions, make_task

BEGIN, END = "<!-- tables of bench/gptq_study.py -->", "<!-- end of tables of bench/gptq_study.py -->"
BITS = (2, 3, 4)
SAMPLES = (128, 512)
WAYS = ("rounding", "GPTQ, 128 samples", "GPTQ, 512 samples", "GPTQ, 512 samples, LNB's blocks", "GPTQ, LNB's state")
BATCH = 32
Results = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Cell:
    """A model with its task and budget.

    Attributes:
        title: in the table, with what is measured.
        task: of lnb-bench.
        options: of the task.
        steps, batch_size: of the training.
        tested: how many examples of the test split count.
    """

    title: str
    task: str
    steps: int
    batch_size: int
    tested: int
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, data: Path | None) -> Task:
        """The task."""
        return make_task(self.task, TaskOptions(data=data, **self.options))


CELLS = {
    "gpt": Cell(
        "GPT, 2 blocks of width 64, Shakespeare: loss",
        "shakespeare", 300, 16, 256, {"width": 64, "depth": 2, "context": 64},
    ),
    "vit": Cell(
        "ViT, 2 blocks of width 64, CIFAR-10: accuracy in %",
        "cifar10", 300, 32, 1000, {"width": 64, "depth": 2, "patch": 4},
    ),
    "unet": Cell(
        "UNet, 8 base channels, 2 halvings, CamVid at 32 x 32: pixel accuracy in %",
        "camvid", 200, 8, 233, {"width": 8, "depth": 2, "size": 32},
    ),
}  # fmt: skip


class Sampler:
    """Calibration batches: the first ``count`` of a seeded shuffle of the training examples."""

    def __init__(self, task: Task, count: int, seed: int) -> None:
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(1000 + seed))
        self._task, self.indices = task, order[:count]

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.indices.split(BATCH):
            yield self._task.train.batch(part, torch.device("cpu"))[0]


@torch.no_grad()
def judge(model: nn.Module, task: Task, count: int) -> float:
    """The task's figure on the first ``count`` test examples; shares in per cent."""
    split = FirstExamples(task.test, count)
    model.eval()
    sums = []
    for indices in torch.arange(len(split)).split(BATCH):
        inputs, targets = split.batch(indices, torch.device("cpu"))
        sums.append(task.objective.sums(model(inputs), targets))
    value = task.objective.summary(torch.stack(sums).sum(0))[task.objective.metric]
    return 100 * value if task.objective.higher_is_better else value


def measure(cell: Cell, task: Task, seed: int) -> dict[str, float]:
    """One training, and every way to quantise what came of it."""
    started = time.process_time()
    config = LoopConfig(cell.steps, cell.batch_size, seed, "cosine")
    trainer = Trainer(task, OptimizerConfig("lnb"), config)
    for _ in range(cell.steps):
        trainer.train_step()
    found = {"training seconds": time.process_time() - started}
    optimizer = trainer.optimizer.parts[0]
    assert isinstance(optimizer, lnb.LNB)
    model = trainer.model
    own = lnb.export_moments(optimizer)
    lnb.detach(model)
    few, more = (lnb.gather_moments(model, Sampler(task, count, seed)) for count in SAMPLES)
    cut = lnb.gather_moments(model, Sampler(task, SAMPLES[-1], seed), block_size=optimizer.config.block_size)
    used: dict[str, Moments] = dict(zip(WAYS, (own, few, more, cut, own), strict=True))
    found["not quantised"] = judge(model, task, cell.tested)
    for bits in BITS:
        for way, moments in used.items():
            candidate = copy.deepcopy(model)
            quantize(candidate, moments, bits, method="nearest" if way == "rounding" else "gptq")
            found[f"{bits} bits: {way}"] = judge(candidate, task, cell.tested)
    return found


def tables(kept: dict[str, Any]) -> str:
    """The page's table: a row for every number of bits and way, a column for every model."""
    cells = [name for name in CELLS if name in kept["cells"]]
    found: dict[str, Results] = {name: kept["cells"][name] for name in cells}
    seeds = ", ".join(f"{len(next(iter(found[name].values())))} of the {name}" for name in cells)
    digits = {name: 3 if CELLS[name].title.endswith("loss") else 1 for name in cells}
    seconds = ", ".join(f"{name} {spread(found[name]['training seconds'], 0)}" for name in cells)
    made = f"torch {kept['torch']}, {kept['date']}. Processor seconds of a training: {seconds}."
    rows = ("not quantised", *(f"{bits} bits: {way}" for bits in BITS for way in WAYS))
    lines = [
        f"Means and standard deviations over seeds (start and order of the data: {seeds}); {made}",
        "",
        f"| quantisation | {' | '.join(CELLS[name].title for name in cells)} |",
        "| --- " * (len(cells) + 1) + "|",
        *(f"| {row} | {' | '.join(spread(found[name][row], digits[name]) for name in cells)} |" for row in rows),
    ]
    return "\n".join(lines)


def keep(path: Path | None, kept: dict[str, Any]) -> None:
    """Write all that was measured, at once or not at all."""
    if path is not None:
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(json.dumps(kept) + "\n")
        os.replace(beside, path)


def begun(path: Path | None, fresh: dict[str, Any]) -> dict[str, Any]:
    """What was kept before, or ``fresh`` where nothing was."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else fresh
    return kept


def arguments_of(description: str | None, cells: Iterable[str], seeds: int) -> argparse.Namespace:
    """The arguments of a study of ``cells`` that is broken off and gone on with; it runs on one thread."""
    names = list(cells)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data; else $LNB_DATA")
    parser.add_argument("--seeds", type=int, default=seeds, help="of each cell; a page says what they are used for")
    parser.add_argument("--cells", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, help="where to keep the results; a file that is there is gone on with")
    parser.add_argument("--page", type=Path, help="a page with the marks between which the table goes")
    torch.set_num_threads(1)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of(__doc__, CELLS, seeds=5)
    kept = begun(arguments.json, {"date": date.today().isoformat(), "torch": torch.__version__, "cells": {}})
    tasks = {name: CELLS[name].make(arguments.data) for name in arguments.cells}
    for seed in range(arguments.seeds):
        for name, task in tasks.items():
            results: Results = kept["cells"].setdefault(name, {})
            if len(results.get("not quantised", ())) > seed:
                continue
            for row, value in measure(CELLS[name], task, seed).items():
                results.setdefault(row, []).append(value)
            keep(arguments.json, kept)
    print(tables(kept))
    if arguments.page:
        arguments.page.write_text(filled(arguments.page.read_text(), tables(kept), BEGIN, END))


if __name__ == "__main__":
    main()
