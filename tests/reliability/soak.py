"""Many steps of a small model with refreshes, saves, loads and changing threads: memory stays flat, rounding stays bounded.

    python tests/reliability/soak.py [--steps 100000] [--calls 100000] [--json FILE]

**Memory.** After a tenth of the steps the resident memory is noted; at the end it may be 1 % larger.

**Drift.** Every ``reload_every`` steps, a float64 run of the same recipe starts from the float32 run's state and sees the same
batches. Let ``e_t`` be the difference of their parameters ``t`` steps later, ``eps = 2^-24``, and ``lr_t`` the rate. The addition
of a step rounds each parameter by at most ``eps |theta|``, independently from step to step: ``eps |theta| sqrt(T)`` after ``T``
steps. The direction of a layer has size 1 in the metric; it is computed from sums of at most ``k`` terms, each of which rounds by
``k eps`` relatively (the classical ``gamma_k``), and multiplied by inverses whose condition is at most ``c = 1 / ridge``: it adds
at most ``k c eps lr_t``. Where the rates are small enough for the steps themselves not to increase ``e_t``, then

    |e_T| <= eps (|theta| sqrt(T) + k c sum_t lr_t).

A state that is lost in a reload, an average that is taken twice, or one that is kept in a lower precision exceeds it: the
float64 run is not reloaded between.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lnb
import lnb_kernels as lk
from lnb_kernels import multi_tensor

EPSILON = 2.0**-24
REFRESH, RATE, CONDITION = 10, 0.02, 1e2
BATCH, WIDTHS = 16, (6, 8, 3)
TERMS = BATCH + max(WIDTHS) + 1  # of the longest sums: over a batch, then over a layer's inputs and its bias


def model_of(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    first, hidden, last = WIDTHS
    return nn.Sequential(nn.Linear(first, hidden), nn.Tanh(), nn.Linear(hidden, last)).to(dtype)


def rate(step: int, steps: int) -> float:
    """The learning rate of a step: falls with the inverse of the time, to a hundredth."""
    return RATE / (1 + 99 * step / steps)


class Run:
    """One precision's training."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.model = model_of(dtype)
        self.optimizer = lnb.LNB(self.model, lr=RATE, refresh_every=REFRESH, ridge=1.0 / CONDITION)

    def step(self, x: Tensor, y: Tensor, lr: float) -> None:
        dtype = next(self.model.parameters()).dtype
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        (self.model(x.to(dtype)) - y.to(dtype)).square().mean().backward()
        self.optimizer.step()

    def reload(self) -> None:
        """Save to memory and load what was saved into a new optimizer of the same model."""
        buffer = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def follow(self, other: Run) -> None:
        """Go on from the state of another run, in this one's precision."""
        self.model.load_state_dict(other.model.state_dict())
        self.optimizer.load_state_dict(other.optimizer.state_dict())

    def parameters(self) -> Tensor:
        return torch.cat([parameter.detach().double().flatten() for parameter in self.model.parameters()])


def resident() -> int:
    """Bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(steps: int, reload_every: int = 500) -> dict[str, Any]:
    """Train both runs side by side; memory and drift."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(WIDTHS[0], WIDTHS[-1], generator=generator)
    narrow, wide = Run(torch.float32), Run(torch.float64)
    threads = torch.get_num_threads()
    settled = 0
    worst, rates, reloads = 0.0, 0.0, 0
    largest: dict[str, float] = {}
    try:
        for step in range(steps):
            x = torch.randn(BATCH, WIDTHS[0], generator=generator)
            y = torch.sin(x @ target)
            lr = rate(step, steps)
            rates += lr
            for run in (narrow, wide):
                run.step(x, y, lr)
            place = step % reload_every
            if place == reload_every // 2:
                narrow.reload()
                reloads += 1
                torch.set_num_threads(2 + reloads % 3)
            elif place == reload_every // 2 + 4:
                torch.set_num_threads(threads)
            elif place == reload_every - 1:
                found = wide.parameters()
                drift, norm = float((narrow.parameters() - found).norm()), float(found.norm())
                bound = EPSILON * (norm * math.sqrt(reload_every) + TERMS * CONDITION * rates)
                if not drift / bound <= worst:
                    worst = drift / bound
                    largest = {"largest_drift": drift, "drift_bound": bound}
                wide.follow(narrow)
                rates = 0.0
            if step == steps // 10:
                settled = resident()
    finally:
        torch.set_num_threads(threads)
    return {
        "steps": steps,
        "reloads": reloads,
        "memory_after_a_tenth": settled,
        "memory_growth": resident() / settled - 1,
        **largest,
    }


def calls(count: int) -> dict[str, Any]:
    """Resident memory over many calls of the ops, those that fail included."""
    x, average = torch.randn(32, 12), [torch.randn(12, 12), torch.randn(7)]
    value, matrices = [torch.randn(12, 12), torch.randn(7)], torch.eye(12).repeat(3, 1, 1)
    scales = torch.ones(2)
    settled = 0
    for i in range(count):
        kind = i % 8
        if kind == 0:
            lk.second_moment(x)
        elif kind == 1:
            multi_tensor.ema_combined_(average, value, 0.9, scales, 0.1)
        elif kind == 2:
            multi_tensor.dot(average, value)
        elif kind == 3:
            multi_tensor.apply_(average, value, scales, 1e-3, 0.1)
        elif kind == 4:
            lk.spd_inverse(matrices)
        elif kind == 5:
            lk.cov_matvec(x, value[0])
        elif kind == 6:
            multi_tensor.all_finite(average)
        else:
            try:
                multi_tensor.ema_combined_([average[0], average[0]], value[:1] * 2, 0.9, scales, 0.1)
            except ValueError:
                pass
            else:
                raise AssertionError("averages that share memory were taken")
        if i == count // 10:
            settled = resident()
    return {"calls": count, "memory_after_a_tenth": settled, "memory_growth": resident() / settled - 1}


def problems(found: dict[str, Any]) -> list[str]:
    """What of a soak is not as promised."""
    wrong = []
    if found["memory_growth"] > 0.01:
        wrong.append(f"resident memory grew by {found['memory_growth']:.1%}")
    if "drift_bound" in found and not found["largest_drift"] <= found["drift_bound"]:
        wrong.append(f"the drift {found['largest_drift']:.2e} exceeds {found['drift_bound']:.2e}")
    return wrong


def main() -> int:
    """Run what the command line asks for; 1 where something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    found = {"soak": soak(options.steps), "calls": calls(options.calls)}
    wrong = [problem for part in found.values() for problem in problems(part)]
    result = {**found, "wrong": wrong, "seconds": round(time.monotonic() - started)}
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
