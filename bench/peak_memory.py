"""Peak memory of a training step, against that of ``AdamW(fused=True)`` plus the state that ``opt.plan()`` announces.

Every optimizer of every model runs in a fresh process under torch's memory profiler, which sees each allocation and release
of the CPU allocator, inside operators too; the running sum over a run that includes refreshes is exact and does not depend
on the machine's load. (Workspaces that BLAS and oneDNN allocate by themselves are the same for all optimizers.) Beside it
stands the process's own high-water mark of the same steps without the profiler, interpreter and libraries included.

The bound is ``peak <= 1.02 (AdamW's peak + planned state)``. ``with moments`` adds to the planned state what ``plan()``
announces to live between backward pass and step; the stricter ``over swapped state`` compares with AdamW's peak after AdamW's
own state is exchanged for the planned one.

    python bench/peak_memory.py [--model mlp] [--scale 1] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from models import MODELS
from torch import Tensor, nn

import lnb
import lnb_kernels

STEPS = 12  # a refresh every tenth step: the first and the eleventh
TOLERANCE = 1.02


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True),
    "fast": lambda m: lnb.LNB(m, 0.01),
    "fast, layer region": lambda m: lnb.LNB(m, 0.01, trust_region="layer"),
    "paper": lambda m: lnb.LNB(m, 0.02, "paper"),
    "paper, matrix-free": lambda m: lnb.LNB(m, 0.02, "paper", solver="matrix_free"),
}


@dataclass
class Usage:
    """Bytes of one run.

    Attributes:
        peak: the most that was allocated at one time, from the model's construction on.
        phase: where that was: ``"forward"``, ``"backward"`` or ``"step"``, with the number of the training step.
        phase_peaks: the most within each of the phases.
        at_peak: the operators that allocated most of what was live at the peak of ``step``, largest first.
        state: the optimizer's tensors after the run, counted.
        planned: what ``opt.plan()`` announces for the claimed layers; 0 for other optimizers.
        gathered: the second moments or inputs that it announces from the backward pass to the step.
        high_water: the process's peak resident size as the system counts it; 0 where it does not tell.
    """

    peak: int
    phase: str
    phase_peaks: dict[str, int]
    at_peak: dict[str, int]
    state: int
    planned: int
    gathered: int
    high_water: int


def measure(model_name: str, optimizer_name: str, scale: float) -> Usage:
    """Run a few steps of one optimizer in this process, which should be a fresh one, plain and then profiled."""
    from torch.profiler import ProfilerActivity, profile

    _train(model_name, optimizer_name, scale)
    high_water = _high_water()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer = _train(model_name, optimizer_name, scale)
    plan = optimizer.plan() if isinstance(optimizer, lnb.LNB) else None
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    events = profiler.profiler.kineto_results.events()
    return Usage(
        **replay(events),
        state=sum(t.untyped_storage().nbytes() for t in tensors),
        planned=0 if plan is None else plan.state_bytes,
        gathered=0 if plan is None else plan.gathered_bytes,
        high_water=high_water,
    )


def _train(model_name: str, optimizer_name: str, scale: float) -> torch.optim.Optimizer:
    from torch.profiler import record_function

    torch.manual_seed(0)
    model, (inputs, loss_fn) = MODELS[model_name](scale)
    optimizer = OPTIMIZERS[optimizer_name](model)
    for step in range(STEPS):
        optimizer.zero_grad()
        with record_function(f"phase: forward {step}"):
            loss = loss_fn(model(inputs))
        with record_function(f"phase: backward {step}"):
            loss.backward()
        del loss
        with record_function(f"phase: step {step}"):
            optimizer.step()
    return optimizer


def replay(events: list[Any]) -> dict[str, Any]:
    """Add up the allocations in the order in which they happened."""
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns(), e.name()) for e in events if e.name() != "[memory]"]
    phases = sorted(span for span in spans if span[2].startswith("phase: "))
    allocations = [(e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]"]
    allocations += [(start, -1, 0) for start, _, _ in phases]  # so that a phase without allocations counts what is live
    allocations.sort()
    live = peak = 0
    where = "set-up"
    tops: dict[str, tuple[int, int]] = {}
    for moment, _, size in allocations:
        live += size
        inside = next((name[7:] for start, end, name in phases if start <= moment <= end), "between")
        if live > tops.get(inside, (0, 0))[0]:
            tops[inside] = live, moment
        if live > peak:
            peak, where = live, inside
    last = max((top for name, top in tops.items() if name.startswith("step")), default=(0, 0))[1]
    named: dict[str, int] = {}
    for phase, (top, _) in tops.items():
        kind = phase.split()[0]
        named[kind] = max(named.get(kind, 0), top)
    return {"peak": peak, "phase": where, "phase_peaks": named, "at_peak": _temporaries(spans, allocations, last)}


def _temporaries(
    spans: list[tuple[int, int, str]], allocations: list[tuple[int, int, int]], moment: int
) -> dict[str, int]:
    """Bytes that the operators of the step had allocated, less what they had released, when it used most."""
    step = next((s for s in spans if s[2].startswith("phase: step") and s[0] <= moment <= s[1]), None)
    if step is None:
        return {}
    inner = sorted(span for span in spans if step[0] <= span[0] and span[1] <= step[1] and span != step)
    totals: Counter[str] = Counter()
    for at, _, size in allocations:
        if step[0] <= at <= moment:
            within = [span for span in inner if span[0] <= at <= span[1]]
            names = [name for start, end, name in within if not name.startswith(("aten::empty", "Optimizer.step"))]
            totals[names[-1] if names else "releases, and what was made outside operators"] += size
    return {name: size for name, size in totals.most_common(6) if size > 0}


def _high_water() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def in_fresh_process(model: str, optimizer: str, scale: float, threads: int) -> Usage:
    """:func:`measure`, in a process that has allocated nothing yet."""
    command = [sys.executable, __file__, "--one", model, optimizer, "--scale", str(scale), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode != 0:
        raise RuntimeError(f"{model}, {optimizer}: {done.stderr[-2000:]}")
    return Usage(**json.loads(done.stdout.splitlines()[-1]))


def compare(usages: dict[str, Usage]) -> dict[str, dict[str, Any]]:
    """Every optimizer's usage with its ratios to AdamW's."""
    base = usages["AdamW fused"]
    rows = {}
    for name, usage in usages.items():
        rows[name] = {
            **asdict(usage),
            "over_planned": usage.peak / (base.peak + usage.planned),
            "over_planned_and_gathered": usage.peak / (base.peak + usage.planned + usage.gathered),
            "over_swapped_state": usage.peak / (base.peak - base.state + (usage.planned or usage.state)),
        }
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), action="append", help="besides AdamW")
    parser.add_argument("--scale", type=float, default=1.0, help="of widths and batch, for a quick look")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "OPTIMIZER"), help="measure here, print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(asdict(measure(*arguments.one, arguments.scale))))
        return
    chosen = [o for o in OPTIMIZERS if o in (arguments.optimizer or OPTIMIZERS) or o == "AdamW fused"]
    results = {}
    for name in arguments.model or MODELS:
        usages = {o: in_fresh_process(name, o, arguments.scale, arguments.threads) for o in chosen}
        results[name] = compare(usages)
        print(f"\n{name}: {MODELS[name].__doc__} (MB)")
        columns = ("peak", "state", "planned", "process", "peak/(AdamW+planned)", "with moments", "over swapped state")
        print(f"{'':22}" + "".join(f"{c:>{max(9, len(c) + 2)}}" for c in columns) + "  peak in")
        for label, row in results[name].items():
            sizes = (row["peak"], row["state"], row["planned"], row["high_water"])
            ratios = (
                f"{row['over_planned']:22.3f}{row['over_planned_and_gathered']:14.3f}{row['over_swapped_state']:20.3f}"
            )
            print(f"{label:22}" + "".join(f"{size / 1e6:9.1f}" for size in sizes) + f"{ratios}  {row['phase']}")
            if row["over_planned"] > TOLERANCE:
                blame = ", ".join(f"{o} {size / 1e6:.1f}" for o, size in row["at_peak"].items())
                print(f"{'':4}over the bound of {TOLERANCE}; allocated in the step: {blame}", flush=True)
    if arguments.json:
        facts = {"date": date.today().isoformat(), "lnb": lnb_kernels.__version__, "torch": torch.__version__}
        facts["machine"] = platform.machine()
        text = json.dumps({**facts, "steps": STEPS, "scale": arguments.scale, "results": results}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
