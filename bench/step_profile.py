"""Where the time of a training step goes: forward, backward, statistics, solve, update; and memory against batch size.

All optimizers of a model take turns, one step each; a part's time is the median over refresh cycles of its mean over the ten
steps of a cycle. *Statistics* is what forward and backward take longer than AdamW's of the same cycle, *solve* the time of
``lnb.solvers.solve``, *update* the rest of the step. ``--clock cpu`` counts the processor time of one thread, which other
processes do not disturb. `lnb-bench report --profile FILE` shows the JSON files.

    python bench/step_profile.py [--model mlp ...] [--cycles 3] [--threads 2] [--clock cpu] [--json FILE]
    python bench/step_profile.py --memory [--batches 64 1024] [--json FILE]      # peak memory against batch size
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import step_overhead
import timing
import torch
import torch.utils.checkpoint
from models import MODELS, Batch
from torch import nn

import lnb
from lnb import step
from lnb_bench.study.memory import peak_bytes
from lnb_bench.study.profiles import PARTS, save_profile

CYCLE = 10
BASE = "AdamW fused"
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    name: step_overhead.OPTIMIZERS[name] for name in (BASE, "fast", "paper", "paper, matrix-free", "paper, autodiff")
}
Spans = dict[str, float]  # seconds by "forward", "backward", "solve", "update"


class Worker:
    """One optimizer on its own copy of a model, with a stop-watch for each part of its steps."""

    def __init__(
        self, model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], clock: Callable[[], float]
    ) -> None:
        self.model, self.clock = copy.deepcopy(model), clock
        self.optimizer = make(self.model)
        self.losses: list[float] = []

    def step(self, batch: Batch) -> Spans:
        """Make one training step."""
        inputs, loss_fn = batch
        self.optimizer.zero_grad()
        start = self.clock()
        loss = loss_fn(self.model(inputs))
        forward = self.clock()
        loss.backward()
        backward = self.clock()
        with timed_solve(self.clock) as solved:
            self.optimizer.step()
        end = self.clock()
        self.losses.append(loss.item())
        solve = sum(solved)
        return {
            "forward": forward - start,
            "backward": backward - forward,
            "solve": solve,
            "update": end - backward - solve,
        }


@contextmanager
def timed_solve(clock: Callable[[], float]) -> Iterator[list[float]]:
    """Time the refreshes and solutions of the layers' systems; yields a list that fills with seconds."""
    seconds: list[float] = []
    plain = {name: getattr(step, name) for name in ("refresh_over", "solve")}

    def timed(stage: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = clock()
            try:
                return stage(*arguments)
            finally:
                seconds.append(clock() - start)

        return run

    for name, stage in plain.items():
        setattr(step, name, timed(stage))
    try:
        yield seconds
    finally:
        for name, stage in plain.items():
            setattr(step, name, stage)


def split(mine: Spans, base: Spans) -> dict[str, float]:
    """The parts of a step from its spans and those of AdamW's: what its passes take longer is for the statistics."""
    forward, backward = min(mine["forward"], base["forward"]), min(mine["backward"], base["backward"])
    statistics_ = (mine["forward"] - forward) + (mine["backward"] - backward)
    return {
        "forward": forward,
        "backward": backward,
        "statistics": statistics_,
        "solve": mine["solve"],
        "update": mine["update"],
    }


def parts(model: nn.Module, batch: Batch, cycles: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    """Milliseconds of a step of every optimizer by :data:`PARTS`; optimizers that did not train are left out."""
    workers = {label: Worker(model, make, clock) for label, make in OPTIMIZERS.items()}
    found: dict[str, list[dict[str, float]]] = {label: [] for label in workers}
    for cycle in range(cycles + 1):
        spans: dict[str, list[Spans]] = {label: [] for label in workers}
        for _ in range(CYCLE):
            for label, worker in workers.items():
                spans[label].append(worker.step(batch))
        if cycle == 0:  # the first steps refresh more often
            continue
        means = {
            label: {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
            for label, rows in spans.items()
        }
        for label, mean in means.items():
            found[label].append(split(mean, means[BASE]))
    rows = {}
    for label, measured in found.items():
        losses = workers[label].losses
        if all(map(math.isfinite, losses)) and losses[-1] < losses[0]:
            rows[label] = {part: 1e3 * statistics.median(row[part] for row in measured) for part in PARTS}
        else:
            print(f"{label:22}  no time: it did not train")
    return rows


def show_parts(models: list[str], cycles: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Measure and print the times of all optimizers on every model."""
    results: dict[str, Any] = {}
    for name in models:
        torch.manual_seed(0)
        print(f"\n{name}: {MODELS[name].__doc__} (ms)")
        print(f"{'':22}" + "".join(f"{part:>12}" for part in PARTS))
        results[name] = parts(*MODELS[name](), cycles, clock)
        for label, row in results[name].items():
            print(f"{label:22}" + "".join(f"{row[part]:12.2f}" for part in PARTS), flush=True)
    return results


class Checkpointed(nn.Module):
    """A chain whose parts are computed again in the backward pass."""

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.chain:
            x = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)
        return x


MEMORY_OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    BASE: OPTIMIZERS[BASE],
    "paper, kept inputs": OPTIMIZERS["paper, matrix-free"],
    "paper, probe": lambda m: lnb.LNB(m, 0.02, "paper"),
    "fast": lambda m: lnb.LNB(m, 0.01),
}


def peak(model: nn.Module, rows: int, width: int, make: Callable[[nn.Module], torch.optim.Optimizer]) -> int:
    """Most bytes live during three steps, parameters and state included."""

    def train() -> None:
        here = model.to(torch.float64).to(torch.float32)  # allocated anew, where the profiler sees it
        inputs = torch.randn(rows, width)
        optimizer = make(here)
        for _ in range(3):
            optimizer.zero_grad()
            here(inputs).square().mean().backward()
            optimizer.step()

    return peak_bytes(train)


def pair(width: int) -> nn.Module:
    """Two layers with tanh, the unit of checkpointing."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())


def show_memory(batches: list[int], width: int, depth: int) -> list[dict[str, Any]]:
    """Print the peaks of a chain of ``depth`` pairs of layers of ``width`` with tanh, plain and checkpointed pair by pair."""
    rows = []
    print(f"{depth} x 2 x ({width}-{width}, tanh), fp32; MB at the peak")
    print(f"{'':22}{'checkpointed':>14}" + "".join(f"{f'batch {batch}':>14}" for batch in batches))
    for label, make in MEMORY_OPTIMIZERS.items():
        for checkpointed in (False, True):
            peaks = []
            for batch in batches:
                torch.manual_seed(0)
                chain = nn.Sequential(*(pair(width) for _ in range(depth)))
                peaks.append(peak(Checkpointed(chain) if checkpointed else chain, batch, width, make))
            shown = "".join(f"{size / 1e6:14.1f}" for size in peaks)
            print(f"{label:22}{'yes' if checkpointed else 'no':>14}{shown}", flush=True)
            rows.append(
                {"optimizer": label, "checkpointed": checkpointed, "peaks": dict(zip(batches, peaks, strict=True))}
            )
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--memory", action="store_true", help="peak memory against batch size instead of times")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments, clock = timing.parse(parser)
    results: Any
    if arguments.memory:
        width, depth = arguments.width, arguments.depth
        results = show_memory(arguments.batches, width, depth)
        kind, title = "memory", f"{depth} x 2 linear layers of {width} with tanh, fp32"
    else:
        chosen = arguments.model or list(MODELS)
        results = show_parts(chosen, arguments.cycles, clock)
        kind, title = (
            "parts",
            "; ".join(f"{name}: {(MODELS[name].__doc__ or '').rstrip('.')}" for name in chosen),
        )
    if arguments.json:
        save_profile(arguments.json, kind, title, results)


if __name__ == "__main__":
    main()
