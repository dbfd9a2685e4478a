"""Where the time of a training step goes: forward, backward, statistics, solve, update; and memory against batch size.

The times are from torch's profiler, summed over a whole refresh cycle of ten steps and divided by ten: *statistics* is what
the backward pass takes longer than AdamW's on the same model, *solve* the time of ``lnb.solve``, *update* the rest of the step.
The profiler slows small operators down, so the shares are for orientation; whole-step ratios are in ``step_overhead.py``.

    python bench/step_profile.py [--model mlp ...] [--threads 2] [--json FILE]
    python bench/step_profile.py --memory [--batches 64 1024] [--json FILE]      # peak memory against batch size
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import step_overhead
import torch
import torch.utils.checkpoint
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

import lnb
from lnb import update

CYCLE = 10
SPANS = ("forward", "backward", "solve", "update")
PARTS = ("forward", "backward", "statistics", "solve", "update")
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    name: step_overhead.OPTIMIZERS[name]
    for name in ("AdamW fused", "fast", "paper", "paper, matrix-free", "paper, autodiff")
}


@contextmanager
def marked_solve() -> Iterator[None]:
    """Let the profiler see the solution of the layers' systems as one span."""
    plain = update.solve

    def solve(*arguments: Any) -> Any:
        with record_function("part: solve"):
            return plain(*arguments)

    update.solve = solve
    try:
        yield
    finally:
        update.solve = plain


def parts(
    model: nn.Module, batch: step_overhead.Batch, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> dict[str, float]:
    """Milliseconds of a step by :data:`SPANS`, mean over a cycle."""
    optimizer = make(model)
    inputs, loss_fn = batch

    def step() -> None:
        optimizer.zero_grad()
        with record_function("part: forward"):
            loss = loss_fn(model(inputs))
        with record_function("part: backward"):
            loss.backward()
        with record_function("part: update"):
            optimizer.step()

    for _ in range(CYCLE):  # the first steps refresh more often
        step()
    with marked_solve(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(CYCLE):
            step()
    return split(profiler.profiler.kineto_results.events())


def split(events: list[Any]) -> dict[str, float]:
    """Add up the marked spans of the profiler's events; the solution is within the update, and counted apart."""
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns(), e.name()) for e in events]
    total = {name: sum(b - a for a, b, n in spans if n == f"part: {name}") for name in SPANS}
    total["update"] -= total["solve"]
    return {name: nanoseconds / CYCLE / 1e6 for name, nanoseconds in total.items()}


def show_parts(models: list[str]) -> dict[str, Any]:
    """Measure and print the times of all optimizers on every model."""
    results: dict[str, Any] = {}
    for name in models:
        results[name] = {}
        print(f"\n{name}: {step_overhead.MODELS[name].__doc__} (ms)")
        print(f"{'':22}" + "".join(f"{part:>12}" for part in PARTS))
        for label, make in OPTIMIZERS.items():
            torch.manual_seed(0)
            model, batch = step_overhead.MODELS[name]()
            row = results[name][label] = parts(model, batch, make)
            plain = results[name]["AdamW fused"]["backward"]
            row["statistics"] = max(0.0, row["backward"] - plain)
            row["backward"] = min(row["backward"], plain)
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
    "AdamW fused": OPTIMIZERS["AdamW fused"],
    "paper, kept inputs": OPTIMIZERS["paper, matrix-free"],
    "paper, probe": lambda m: lnb.LNB(m, 0.02, "paper"),
    "fast": lambda m: lnb.LNB(m, 0.01),
}


def peak(model: nn.Module, rows: int, width: int, make: Callable[[nn.Module], torch.optim.Optimizer]) -> int:
    """Most bytes live during the second and third of three steps, parameters and state included."""
    from peak_memory import replay

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = model.to(torch.float64).to(torch.float32)  # allocated anew, where the profiler sees it
        inputs = torch.randn(rows, width)
        optimizer = make(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    result: int = replay(profiler.profiler.kineto_results.events())["peak"]
    return result


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
    parser.add_argument("--model", choices=list(step_overhead.MODELS), action="append")
    parser.add_argument("--memory", action="store_true", help="peak memory against batch size instead of times")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: Any
    if arguments.memory:
        results = show_memory(arguments.batches, arguments.width, arguments.depth)
    else:
        results = show_parts(arguments.model or list(step_overhead.MODELS))
    if arguments.json:
        facts = {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
        arguments.json.write_text(
            json.dumps({**facts, "threads": arguments.threads, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
