"""Where does the default diverge or stall? Small regressions that stress one thing each, beside AdamW and Muon.

AdamW runs at 1e-3, Muon at 3e-3 in AdamW's unit, LNB at its default and at three times it. A case is judged by the mean loss
of its last tenth of steps, on new rows, against the mean loss before the first: ``above`` where it ended above that, ``worse``
where it ended above 1.2 times AdamW's and above 1e-3.

    python bench/robustness.py [--case NAME ...] [--seeds 3] [--quick] [--json FILE] [--page FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from robustness_cases import CASES, Case
from torch import nn
from torch.optim import Optimizer, lr_scheduler

import lnb
from lnb_bench.training.optimizers import OptimizerConfig, build_optimizer

Result = tuple[float, float]  # mean loss before the first step, mean loss of the last tenth


def _lnb(factor: float) -> Callable[[nn.Module], list[Optimizer]]:
    return lambda model: [lnb.LNB(model, lr=factor * lnb.DEFAULT_LR["fast"])]


OPTIMIZERS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "adamw": lambda model: [torch.optim.AdamW(model.parameters(), lr=1e-3)],
    "muon": lambda model: build_optimizer(OptimizerConfig("muon"), model, "constant", 1).parts,
    "lnb": _lnb(1.0),
    "lnb x 3": _lnb(3.0),
}


def schedule_of(optimizer: Optimizer, case: Case) -> lr_scheduler.LRScheduler | None:
    """The case's schedule, around the optimizer's own rates."""
    if case.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, case.steps)
    if case.schedule == "one-cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=case.steps + 1, cycle_momentum=False)
    if case.schedule == "warm-up":
        return lr_scheduler.LinearLR(optimizer, 0.01, 1.0, total_iters=max(1, case.steps // 10))
    return None


@torch.no_grad()
def start_of(case: Case, model: nn.Module, seed: int) -> float:
    """The mean loss of an untrained model over about 4,096 rows: that of one row says little."""
    batches = case.batches(seed)
    losses = []
    for _ in range(max(1, 4096 // case.batch)):
        x, y = next(batches)
        losses.append(F.mse_loss(model(x).float(), y.float()).item() / case.scale**2)
    return sum(losses) / len(losses)


def run(case: Case, optimizer: str, seed: int) -> Result:
    """Train one model; infinite as soon as a loss is not finite."""
    torch.manual_seed(seed)
    model = case.build().to(case.dtype)
    first = start_of(case, model, seed)
    parts = OPTIMIZERS[optimizer](model)
    schedules = [schedule for part in parts if (schedule := schedule_of(part, case)) is not None]
    batches = case.batches(seed)
    losses: list[float] = []
    for _ in range(case.steps):
        for part in parts:
            part.zero_grad()
        total = 0.0
        for _ in range(case.accumulate):
            x, y = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                outputs = model(x)
            loss = F.mse_loss(outputs.float(), y.float()) / (case.scale**2 * case.accumulate)
            loss.backward()
            total += loss.item()
        losses.append(total)
        if not math.isfinite(total):
            return first, math.inf
        for part in parts:
            part.step()
        for schedule in schedules:
            schedule.step()
    last = losses[-max(1, case.steps // 10) :]
    return first, sum(last) / len(last)


def judge(results: dict[str, list[Result]], optimizer: str) -> str:
    """What is wrong with the runs of ``optimizer``; empty for nothing."""
    found = set()
    for (first, last), (_, reference) in zip(results[optimizer], results["adamw"], strict=True):
        if not last <= first:
            found.add("above")
        if not last <= max(1.2 * reference, 1e-3):
            found.add("worse")
    return " ".join(sorted(found))


HEADER = "| case | seeds | start | " + " | ".join(OPTIMIZERS) + " | faults |\n" + "| --- " * (len(OPTIMIZERS) + 4) + "|"


def line(name: str, results: dict[str, list[Result]]) -> str:
    """One case's row of the table: the median of each optimizer's runs, and what is wrong with which of LNB's."""
    medians = {o: sorted(last for _, last in runs)[len(runs) // 2] for o, runs in results.items()}
    faults = [f"{o}: {fault}" for o in OPTIMIZERS if o.startswith("lnb") and (fault := judge(results, o))]
    numbers = {"start": results["adamw"][0][0], **medians}
    shown = (f"{numbers[column]:.2g}" if column in numbers else "" for column in ("start", *OPTIMIZERS))
    cells = [name, str(len(results["adamw"])), *shown, ", ".join(faults)]
    return f"| {' | '.join(cells)} |"


def page(kept: dict[str, Any]) -> str:
    """The document."""
    cases = kept["cases"]
    counts = []
    for optimizer in OPTIMIZERS:
        if optimizer.startswith("lnb"):
            verdicts = [judge(results, optimizer) for results in cases.values()]
            above, worse = (sum(word in verdict for verdict in verdicts) for word in ("above", "worse"))
            counts.append(f"{optimizer}: {above} above the start, {worse} worse than 1.2 times AdamW")
    lines = [
        "# Robustness of the default",
        "",
        "Made by `bench/robustness.py`; do not edit.",
        "",
        *(__doc__ or "").split("\n\n")[1].splitlines(),
        "",
        (
            "Every optimizer runs at a constant rate unless the case names a schedule. Numbers are medians over "
            "seeds; a fault counts where any seed has it. Muon is left out where its products take too long."
        ),
        "",
        f"Of {len(cases)} cases run (the suite has {len(CASES)}): {'; '.join(counts)}.",
        "",
        f"torch {kept['torch']}, one thread, {kept['date']}.",
        "",
        HEADER,
        *(line(name, results) for name, results in cases.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the slice that the tests run")
    parser.add_argument(
        "--json", type=Path, help="where to keep the results; seeds that are there already are not run again"
    )
    parser.add_argument("--page", type=Path, help="where to write the table of all kept results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = arguments.case or [name for name, case in CASES.items() if case.quick or not arguments.quick]
    kept: dict[str, Any] = {"date": date.today().isoformat(), "torch": torch.__version__, "cases": {}}
    if arguments.json and arguments.json.exists():
        kept["cases"] = json.loads(arguments.json.read_text())["cases"]
    print(HEADER)
    for name in names:
        entered = [optimizer for optimizer in OPTIMIZERS if CASES[name].muon or optimizer != "muon"]
        results = kept["cases"].setdefault(name, {optimizer: [] for optimizer in entered})
        for optimizer, runs in results.items():
            runs.extend(run(CASES[name], optimizer, seed) for seed in range(len(runs), arguments.seeds))
        print(line(name, results), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(kept) + "\n")
        if arguments.page:
            arguments.page.write_text(page(kept))


if __name__ == "__main__":
    main()
