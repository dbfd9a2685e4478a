"""Does the condition number of a matrix factorisation change how many steps an optimizer needs? Writes the page that says so.

The task is ``matrix-factorization`` of the suite (:mod:`lnb_bench.training.tasks`), at several condition numbers and widths of
the hidden layer; a run's seed varies the initial factors. Rates are constant. LNB runs with its preset ``full_batch`` as it
comes; the rate of every first-order optimizer is the best of a grid, one for all runs; L-BFGS searches along lines, and
Levenberg-Marquardt adapts its damping. Steps are counted in passes: evaluations of the loss with its gradient, or, for
Levenberg-Marquardt, with its Jacobian. Times are processor time until the error is met.

    python bench/condition.py [--seeds 10] [--out bench/results/condition.json] [--page docs/results-condition.md]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import lnb_kernels
from lnb_bench.training import OptimizerConfig, TaskOptions, make_task
from lnb_bench.training.data.splits import VectorSplit
from lnb_bench.training.optimizers import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "bench" / "results" / "condition.json", ROOT / "docs" / "results-condition.md"
CONDITIONS = tuple(10.0**k for k in range(1, 9))
WIDTHS = (6, 16, 64)
TARGETS = (1e-6, 1e-12)
LIMIT = 1000
GRIDS = {
    "adamw": (1e-3, 1e-2, 1e-1),
    "sgd": (0.03, 0.1, 0.3),
    "muon": (1e-3, 1e-2, 1e-1),
    "soap": (3e-3, 1e-2, 1e-1),
}
TUNED_ON = (1e1, 1e4)
FIRST_ORDER_CONDITIONS = (1e1, 1e4, 1e8)
FIRST_ORDER_SEEDS = 3
NAMES = {
    "lnb-full-batch": "LNB, full_batch",
    "lm": "Levenberg-Marquardt",
    "lbfgs": "L-BFGS",
    "adamw": "AdamW",
    "sgd": "SGD",
    "muon": "Muon",
    "soap": "SOAP",
}


class Problem:
    """One factorisation: its data, a model, and the relative error of what the model computes."""

    def __init__(self, condition: float, width: int, seed: int) -> None:
        task = make_task("matrix-factorization", TaskOptions(condition=condition, width=width))
        assert isinstance(task.train, VectorSplit)
        self.x, self.y = task.train.inputs, task.train.targets
        torch.manual_seed(seed)
        self.model: nn.Module = task.build()
        self.size = self.y.norm()

    def error(self, outputs: Tensor) -> float:
        """``||f(X) - Y||_F / ||Y||_F``."""
        return float((outputs - self.y).norm() / self.size)

    def backward(self) -> float:
        """Gradients of the loss ``E ||f(x) - y||^2 / 2``; returns the error."""
        outputs = self.model(self.x)
        (0.5 * (outputs - self.y).square().sum(1).mean()).backward()
        return self.error(outputs.detach())


def stepped(problem: Problem, name: str, lr: float | None) -> Iterator[float]:
    """Errors of a run of one of the suite's optimizers at a constant rate."""
    optimizer = build_optimizer(OptimizerConfig(name, lr=lr, weight_decay=0.0), problem.model, "constant", LIMIT)
    while True:
        optimizer.zero_grad()
        yield problem.backward()
        optimizer.step()


def lbfgs(problem: Problem) -> Iterator[float]:
    """Errors of L-BFGS with a search that meets the strong Wolfe conditions, evaluation by evaluation."""
    settings: dict[str, Any] = {"max_iter": 20, "history_size": 100, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(problem.model.parameters(), tolerance_grad=0, tolerance_change=0, **settings)
    found: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        outputs = problem.model(problem.x)
        found.append(problem.error(outputs.detach()))
        loss: Tensor = 0.5e20 * (outputs - problem.y).square().sum(1).mean()  # torch drops pairs below 1e-10
        loss.backward()
        return loss

    while True:
        optimizer.step(closure)
        yield from found
        found.clear()


def levenberg_marquardt(problem: Problem) -> Iterator[float]:
    """Errors of Levenberg and Marquardt's method: damping a third after a gain, four times after a loss.

    The loss of all rows is that of the six inputs' root second moment ``C``, ``||(W2 W1 - A) C||^2 / 2``: 60 residuals.
    """
    root = torch.linalg.cholesky(problem.x.mT @ problem.x / len(problem.x)).mT
    target = root @ torch.linalg.lstsq(problem.x, problem.y).solution
    names = [name for name, _ in problem.model.named_parameters()]
    shapes = [parameter.shape for parameter in problem.model.parameters()]
    sizes = [shape.numel() for shape in shapes]

    def residuals(theta: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        outputs: Tensor = functional_call(problem.model, dict(zip(names, parts, strict=True)), (root,))
        return (outputs - target).flatten()

    theta = torch.cat([parameter.detach().flatten() for parameter in problem.model.parameters()])
    value, jacobian = residuals(theta), jacrev(residuals)(theta)
    damping = 1e-3 * float((jacobian @ jacobian.mT).diagonal().max())
    yield float(value.norm() / target.norm())
    while True:
        kernel = jacobian @ jacobian.mT
        kernel.diagonal().add_(damping)
        moved = theta - jacobian.mT @ torch.linalg.solve(kernel, value)
        new = residuals(moved)
        if new.norm() < value.norm():
            theta, value, jacobian, damping = moved, new, jacrev(residuals)(moved), damping / 3
        else:
            damping *= 4
        yield float(value.norm() / target.norm())


def errors_of(problem: Problem, name: str, lr: float | None) -> Iterator[float]:
    """The errors of a run."""
    if name == "lbfgs":
        return lbfgs(problem)
    return levenberg_marquardt(problem) if name == "lm" else stepped(problem, name, lr)


def run(name: str, lr: float | None, condition: float, width: int, seed: int) -> dict[str, Any]:
    """Passes and seconds to each target; None where it was not met within the limit."""
    problem = Problem(condition, width, seed)
    found: dict[str, Any] = {"condition": condition, "width": width, "seed": seed}
    started = time.process_time()
    for i, error in enumerate(errors_of(problem, name, lr)):
        for target in TARGETS:
            if error <= target and f"{target:g}" not in found:
                found[f"{target:g}"] = i, time.process_time() - started
        if i == LIMIT or not math.isfinite(error) or error <= min(TARGETS):
            break
    return {f"{target:g}": None for target in TARGETS} | found


def tune(name: str) -> float:
    """The rate that meets the most targets on the first seed, and of those the one with the fewest passes."""

    def quality(lr: float) -> tuple[int, float]:
        runs = [run(name, lr, condition, width, 0) for condition in TUNED_ON for width in WIDTHS]
        met = [found[f"{target:g}"][0] for found in runs for target in TARGETS if found[f"{target:g}"]]
        return len(met), -sum(met)

    return max(GRIDS[name], key=quality)


def cell(runs: list[dict[str, Any]], target: float, part: int, show: Callable[[float], str]) -> str:
    """The median over runs, with the least and the most; ``never`` for runs that do not meet the target."""
    values = sorted(math.inf if r[f"{target:g}"] is None else r[f"{target:g}"][part] for r in runs)
    if not values:
        return ""
    middle, low, high = (
        "never" if math.isinf(v) else show(v) for v in (statistics.median_high(values), values[0], values[-1])
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def read(path: Path) -> dict[str, Any]:
    """The data of a run of this script."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def page(data: dict[str, Any]) -> str:
    """The document."""
    lines = [
        "# Steps against the condition number",
        "",
        "Made by `bench/condition.py` from `bench/results/condition.json`; do not edit.",
        "",
        *(__doc__ or "").split("\n\n")[1].replace("``", "`").replace(":mod:", "").splitlines(),
        "",
        (
            f"A run ends after {LIMIT} passes. First-order optimizers ran with {FIRST_ORDER_SEEDS} seeds at condition numbers "
            f"{', '.join(f'{c:.0e}' for c in FIRST_ORDER_CONDITIONS)}, the others with {data['seeds']} seeds at all. "
            "Medians, with the least and the most in brackets. Levenberg-Marquardt solves for all weights jointly, which the 60 "
            "residuals of this problem allow, and counts a solution of that kind as one pass; LNB solves layer by layer. "
            f"lnb {data['lnb']}, torch {data['torch']}, one thread, {data['date']}."
        ),
    ]
    names = [name for name in NAMES if name in data["runs"]]
    for target in TARGETS:
        lines += ["", f"## Passes to a relative error of {target:.0e}"]
        for width in WIDTHS:
            titles = [
                NAMES[n] + (f", lr {data['rates'][n]:g}" if data["rates"].get(n) is not None else "") for n in names
            ]
            lines += [
                "",
                f"Width {width}:",
                "",
                f"| condition | {' | '.join(titles)} |",
                "| --- " * (len(names) + 1) + "|",
            ]
            for condition in CONDITIONS:
                chosen = [
                    [r for r in data["runs"][n] if r["width"] == width and r["condition"] == condition] for n in names
                ]
                cells = [cell(runs, target, 0, lambda v: f"{v:.0f}") for runs in chosen]
                lines.append(f"| {condition:.0e} | {' | '.join(cells)} |")
    lines += ["", "## Milliseconds to each error", "", "Over all condition numbers that an optimizer ran with.", ""]
    titles = [f"{target:.0e}, width {width}" for target in TARGETS for width in WIDTHS]
    lines += [f"| optimizer | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
    for name in names:
        cells = [
            cell([r for r in data["runs"][name] if r["width"] == width], target, 1, lambda v: f"{1000 * v:.0f}")
            for target in TARGETS
            for width in WIDTHS
        ]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, keep the data, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--optimizer", action="append", choices=list(NAMES), help="only these; the others' data stay")
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = read(arguments.out) if arguments.out.exists() else {"rates": {}, "runs": {}}
    data |= {"seeds": arguments.seeds, "torch": torch.__version__, "limit": LIMIT}
    data |= {"lnb": lnb_kernels.__version__, "date": date.today().isoformat()}
    for name in arguments.optimizer or NAMES:
        first_order = name in GRIDS
        rate = data["rates"][name] = tune(name) if first_order else None
        run(name, rate, 10.0, 6, 0)  # what is made once is not timed
        data["runs"][name] = [
            run(name, rate, condition, width, seed)
            for condition in (FIRST_ORDER_CONDITIONS if first_order else CONDITIONS)
            for width in WIDTHS
            for seed in range(FIRST_ORDER_SEEDS if first_order else arguments.seeds)
        ]
        print(name, rate, flush=True)
        arguments.out.write_text(json.dumps(data) + "\n")
        arguments.page.write_text(page(data))


if __name__ == "__main__":
    main()
