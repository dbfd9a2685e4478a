"""The time of a whole training step (forward, backward, update), relative to ``AdamW(fused=True)``.

All optimizers of a model take turns, one step each, in one run; per round the ratio to AdamW's step of the same round is
taken, and the table gives the median ratio with the quartiles, and the ratio of the means over a whole refresh cycle, the
median of all cycles. The first cycle, which refreshes more often than all later ones, is not counted. Every optimizer trains
its own copy of the model on the same batch; a row whose loss is not finite, or did not fall, shows no time.

The column "floor" is arithmetic, not a measurement: the matrix-product FLOPs of a step between refreshes (of every step, where
each is a refresh) over those of forward and backward, all at one rate; products in bfloat16 at that rate times the speed-up
of a large product, which is measured first. What a row loses to memory traffic and small calls is the distance to it.

    python bench/step_overhead.py [--rounds 20] [--seconds 0] [--threads 2] [--model mlp] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from models import MODELS, Batch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lnb
import lnb_kernels as lk
from lnb_bench.training.optimizers import OptimizerConfig, build_optimizer

CYCLE = 10  # steps from one refresh of a layer to the next, of the default preset
WARM_UP = CYCLE  # the first steps, of which every second or third is a refresh


class Stepper:
    """One optimizer on its own copy of a model."""

    def __init__(self, model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], batch: Batch) -> None:
        self.model, self.batch = copy.deepcopy(model), batch
        self.optimizer = make(self.model)
        self.losses: list[float] = []

    def step(self) -> float:
        """Make one training step; return its seconds."""
        inputs, loss_fn = self.batch
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_fn(self.model(inputs))
        loss.backward()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        self.losses.append(loss.item())
        return seconds

    @property
    def trained(self) -> bool:
        """Whether the times mean anything."""
        return all(map(math.isfinite, self.losses)) and self.losses[-1] < self.losses[0]


def autodiff_product(x: Tensor, v: Tensor, ridge: float) -> Tensor:
    """``(X~'X~/N + ridge) v`` of a linear layer, by ``jvp`` and ``vjp``."""
    has_bias = v.shape[-1] == x.shape[-1] + 1
    rows = x.reshape(-1, x.shape[-1])

    def layer(weight: Tensor) -> Tensor:
        return F.linear(rows, weight[:, : rows.shape[1]], weight[:, -1] if has_bias else None)

    zero = torch.zeros_like(v)
    _, tangent = torch.func.jvp(layer, (zero,), (v,))
    _, pull = torch.func.vjp(layer, zero)
    product: Tensor = pull(tangent)[0] / rows.shape[0]
    weights = product[:, :-1] if has_bias else product
    weights += ridge * (v[:, :-1] if has_bias else v)
    return product


def autodiff_conv_product(
    x: Tensor,
    v: Tensor,
    kernel: tuple[int, int],
    stride: object,
    padding: object,
    dilation: object,
    groups: int,
    ridge: float,
) -> Tensor:
    """The same of a convolution."""
    size = x.shape[1] // groups * kernel[0] * kernel[1]
    has_bias = v.shape[-1] == size + 1

    def layer(weight: Tensor) -> Tensor:
        w = weight[:, :size].reshape(-1, x.shape[1] // groups, *kernel)
        return F.conv2d(x, w, weight[:, -1] if has_bias else None, stride, padding, dilation, groups)  # type: ignore[arg-type]

    zero = torch.zeros_like(v)
    _, tangent = torch.func.jvp(layer, (zero,), (v,))
    _, pull = torch.func.vjp(layer, zero)
    product: Tensor = pull(tangent)[0] / (tangent.numel() // tangent.shape[1])
    product[:, :size] += ridge * v[:, :size]
    return product


def autodiff_step(model: nn.Module) -> torch.optim.Optimizer:
    """Paper mode with its covariance products by automatic differentiation, as the published implementation makes them.

    Every product ``X~'X~ v`` is a forward-mode derivative of the layer followed by a reverse-mode one.
    """
    optimizer = lnb.LNB(model, 0.02, "paper", solver="matrix_free")
    plain = optimizer.step

    def step() -> None:
        saved = lk.cov_matvec, lk.conv2d_cov_matvec
        lk.cov_matvec, lk.conv2d_cov_matvec = autodiff_product, autodiff_conv_product  # type: ignore[assignment]
        try:
            plain()
        finally:
            lk.cov_matvec, lk.conv2d_cov_matvec = saved  # type: ignore[assignment]

    optimizer.step = step  # type: ignore[method-assign, assignment]
    return optimizer


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True),
    "fast": lambda m: lnb.LNB(m, 0.01),
    "fast, spectral region": lambda m: lnb.LNB(m, 0.01, trust_region="spectral"),
    "paper": lambda m: lnb.LNB(m, 0.02, "paper"),
    "paper, bf16 moments": lambda m: lnb.LNB(m, 0.02, "paper", moment_dtype=torch.bfloat16),
    "paper, solver auto": lambda m: lnb.LNB(m, 0.02, "paper", solver="auto"),
    "Muon": lambda m: build_optimizer(OptimizerConfig("muon", lr=1e-3), m, "constant", 1),  # type: ignore[dict-item]
    "paper, matrix-free": lambda m: lnb.LNB(m, 0.02, "paper", solver="matrix_free"),
    "paper, autodiff": autodiff_step,
}


def product_flops(model: nn.Module, batch: Batch) -> tuple[int, dict[str, int]]:
    """FLOPs of the products of forward and backward, and the rows that every layer sees, by its name."""
    rows: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: Tensor) -> None:
        rows[name] = output.numel() // (output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1])

    handles = [
        layer.register_forward_hook(lambda layer, args, output, name=name: count(name, layer, output))
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    inputs, loss_fn = batch
    with FlopCounterMode(display=False) as counter:
        loss_fn(model(inputs)).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return counter.get_total_flops(), rows


def bfloat16_speedup() -> float:
    """Of a product of 1024 x 1024 matrices over float32's, or 1 where there is none."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(9):
        for dtype, times in seconds.items():
            x = torch.ones(1024, 1024, dtype=dtype)
            start = time.perf_counter()
            torch.mm(x, x)
            times.append(time.perf_counter() - start)
    return max(1.0, statistics.median(seconds[torch.float32]) / statistics.median(seconds[torch.bfloat16]))


def floor(optimizer: torch.optim.Optimizer, flops: int, rows: dict[str, int], speedup: float) -> float:
    """The least ratio that the optimizer's own products allow; NaN where they are not known."""
    if not isinstance(optimizer, lnb.LNB):
        return math.nan
    extra = 0.0
    for row in optimizer.plan():
        extra += row.solve_flops
        if optimizer.config.refresh_every == 1:
            extra += row.refresh_flops + row.flops_per_sample * rows[row.layer]
    if optimizer.config.moment_dtype == torch.bfloat16:
        extra /= speedup
    return 1 + extra / flops


def mean_ratio(times: list[float], base: list[float]) -> float:
    """The ratio of the sums over a refresh cycle, the median of all cycles: other processes disturb few of them."""
    begins = range(0, len(base), CYCLE)
    return statistics.median(sum(times[i : i + CYCLE]) / sum(base[i : i + CYCLE]) for i in begins)


def measure(name: str, rounds: int, labels: list[str], least_seconds: float = 0.0) -> dict[str, dict[str, float]]:
    """The ratios of every optimizer on one model, in so many rounds, and whole cycles more while the seconds last."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    flops, seen = product_flops(copy.deepcopy(model), batch)
    speedup = bfloat16_speedup()
    steppers = {label: Stepper(model, make, batch) for label, make in OPTIMIZERS.items() if label in labels}
    for _ in range(WARM_UP):
        for stepper in steppers.values():
            stepper.step()
    seconds: dict[str, list[float]] = {label: [] for label in steppers}
    base = seconds["AdamW fused"]
    end = time.perf_counter() + least_seconds
    while len(base) < rounds or len(base) % CYCLE or time.perf_counter() < end:
        for label, stepper in steppers.items():
            seconds[label].append(stepper.step())
    rows = {}
    for label, stepper in steppers.items():
        if not stepper.trained:
            rows[label] = {"ratio": math.nan}
            continue
        # A refresh falls on few steps of a cycle, so ratios of means over whole cycles stand beside the median.
        ratios = sorted(t / b for t, b in zip(seconds[label], base, strict=True))
        quarter = len(ratios) // 4
        rows[label] = {
            "ratio": statistics.median(ratios),
            "low": ratios[quarter],
            "high": ratios[-1 - quarter],
            "mean_ratio": mean_ratio(seconds[label], base),
            "ms": 1e3 * statistics.median(seconds[label]),
            "floor": floor(stepper.optimizer, flops, seen, speedup),
        }
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.0, help="of a model: more rounds until they have passed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--row", choices=list(OPTIMIZERS), action="append", help="besides AdamW's; default all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.rounds < CYCLE or arguments.rounds % CYCLE:
        parser.error(f"--rounds {arguments.rounds} must be a multiple of {CYCLE}: means are over whole refresh cycles")
    torch.set_num_threads(arguments.threads)
    results = {}
    for name in arguments.model or MODELS:
        labels = ["AdamW fused", *(arguments.row or OPTIMIZERS)]
        results[name] = measure(name, arguments.rounds, labels, arguments.seconds)
        print(f"\n{name}: {MODELS[name].__doc__}")
        print(f"{'':24}{'median':>8}{'quartiles':>16}{'mean':>8}{'ms':>9}{'floor':>8}")
        for label, row in results[name].items():
            if math.isnan(row["ratio"]):
                print(f"{label:24}  no time: it did not train")
                continue
            spread = f"{row['low']:.2f}-{row['high']:.2f}"
            print(
                f"{label:24}{row['ratio']:8.2f}{spread:>16}{row['mean_ratio']:8.2f}{row['ms']:9.1f}{row['floor']:8.2f}",
                flush=True,
            )
    if arguments.json:
        facts = {
            "date": date.today().isoformat(),
            "lnb": lk.__version__,
            "torch": torch.__version__,
            "cpu": platform.processor() or platform.machine(),
        }
        text = json.dumps({**facts, "threads": arguments.threads, "results": results}, indent=1)
        arguments.json.write_text(text.replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
