"""What ``LNB.plan()`` predicts against what is measured, per model and setting.

Every optimizer trains its own copy of a model of ``models.py``. Its forward and backward passes and its ``step()`` are
timed apart, on steps that gather statistics and on others; the passes of a copy without LNB, which takes turns, are what
gathering is measured against. All times are milliseconds per step on average.

    python bench/plan_accuracy.py [--rounds 20] [--threads 2] [--model mlp] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from models import MODELS, Batch
from torch import nn

import lnb

SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "paper, matrix-free": {"preset": "paper", "solver": "matrix_free"},
    "paper, auto": {"preset": "paper", "solver": "auto"},
    "layer": {"trust_region": "layer"},
    "spectral": {"trust_region": "spectral"},
    "fast": {},
    "fast, max_overhead 0.05": {"max_overhead": 0.05},
}


@dataclass
class Times:
    """Seconds of the passes and of the step."""

    passes: float
    step: float = 0.0


def now() -> float:
    """Seconds; with one thread its own, so that other programs count less."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def passes(model: nn.Module, batch: Batch) -> float:
    """Forward and backward; its seconds."""
    inputs, loss_fn = batch
    start = now()
    loss_fn(model(inputs)).backward()
    return now() - start


def train_step(model: nn.Module, optimizer: lnb.LNB, batch: Batch) -> Times:
    """One step of training."""
    optimizer.zero_grad()
    forward_and_backward = passes(model, batch)
    start = now()
    optimizer.step()
    return Times(forward_and_backward, now() - start)


def compare(name: str, label: str, rounds: int) -> dict[str, Any]:
    """Measure one setting; seconds per step, and the predicted overhead."""
    torch.manual_seed(0)
    plain, batch = MODELS[name]()
    model = copy.deepcopy(plain)
    optimizer = lnb.LNB(model, 1e-3, **SETTINGS[label])
    for _ in range(2):
        passes(plain, batch)
        train_step(model, optimizer, batch)
    plan = optimizer.plan()
    costs = [row.cost for row in plan if row.cost is not None]
    cycle = max(cost.refresh_every for cost in costs)
    optimizer._step_index = cycle  # past the denser refreshes of the first steps
    train_step(model, optimizer, batch)  # its passes were those of another index
    base, by_step = [], []
    for _ in range(-(-rounds // cycle) * cycle):
        plain.zero_grad()
        base.append(passes(plain, batch))
        by_step.append(train_step(model, optimizer, batch))
    extra = statistics.fmean(times.passes for times in by_step) - statistics.fmean(base)
    predicted = {
        "passes": sum(cost.passes for cost in costs),
        "gathering": sum(cost.gather / cost.refresh_every for cost in costs),
        "step": sum(cost.refresh / cost.refresh_every + cost.solve + cost.region + cost.update for cost in costs),
    }
    measured = {
        "passes": statistics.median(base),
        "gathering": extra,
        "step": statistics.fmean(times.step for times in by_step),
    }
    return {"predicted": predicted, "measured": measured, "overhead": plan.overhead}


def line(label: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    predicted, measured, overhead = found["predicted"], found["measured"], found["overhead"]
    cells = "".join(f"{1e3 * predicted[part]:10.2f}{1e3 * measured[part]:10.2f}" for part in predicted)
    whole = sum(predicted.values()) / sum(measured.values())
    return f"{label:26}{cells}{whole:9.2f}" + ("" if overhead is None else f"{overhead:10.1%}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    for name in arguments.model or MODELS:
        print(f"\n{name}: {MODELS[name].__doc__}")
        print(f"{'':26}{'passes, ms':>20}{'gathering, ms':>20}{'step, ms':>20}{'whole':>9}{'overhead':>10}")
        print(f"{'':26}" + f"{'predicted':>10}{'measured':>10}" * 3 + f"{'ratio':>9}{'predicted':>10}")
        results[name] = {}
        for label in SETTINGS:
            results[name][label] = compare(name, label, arguments.rounds)
            print(line(label, results[name][label]), flush=True)
    if arguments.json:
        facts = {"date": date.today().isoformat(), "torch": torch.__version__, "threads": arguments.threads}
        arguments.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
