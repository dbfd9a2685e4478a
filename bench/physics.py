"""Presets on a physics-informed network: the residual of ``u'' = -pi^2 sin(pi x)``, whose solution is ``sin(pi x)``.

The network is ``u(x) = x (1 - x) net(x)``, with two hidden layers of 16 tanh units in float64; the loss is the mean squared
residual at 64 points of [0, 1], so without noise. Every optimizer starts from the same weights and runs
at each rate for 200 steps.

    python bench/physics.py [--steps 200] [--json FILE]     # then: python docs/tools/tables.py
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
from torch import Tensor, nn
from torch.optim import Optimizer

import lnb

MARKS = (20, 100, 200)
OPTIMIZERS: dict[str, tuple[tuple[float, ...], Callable[[nn.Module, float], Optimizer]]] = {
    "LNB, default preset": ((0.03, 0.1, 0.3), lambda net, lr: lnb.LNB(net, lr)),
    "LNB, full_batch": ((0.1, 0.3, 1.0), lambda net, lr: lnb.LNB(net, lr, preset="full_batch")),
    "Adam": ((0.001, 0.003, 0.01, 0.03), lambda net, lr: torch.optim.Adam(net.parameters(), lr)),
}


def network() -> nn.Module:
    """From one seed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    return net.double()


def solution(net: nn.Module, x: Tensor) -> Tensor:
    """``u(x)``, which is zero at both ends."""
    u: Tensor = x * (1 - x) * net(x)
    return u


def residual(net: nn.Module, x: Tensor) -> Tensor:
    """Mean of ``(u'' + pi^2 sin(pi x))^2``."""
    points = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(solution(net, points).sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), points, create_graph=True)
    return (second + math.pi**2 * torch.sin(math.pi * x)).square().mean()


def trained(make: Callable[[nn.Module, float], Optimizer], lr: float, steps: int) -> dict[str, Any]:
    """Residuals after some steps, and the largest error of the solution at the end."""
    net = network()
    x = torch.linspace(0, 1, 64, dtype=torch.float64).unsqueeze(1)
    optimizer = make(net, lr)
    residuals = {}
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        residual(net, x).backward()
        optimizer.step()
        if step in MARKS or step == steps:
            residuals[step] = residual(net, x).item()
    with torch.no_grad():
        error = (solution(net, x) - torch.sin(math.pi * x)).abs().max().item()
    return {"residuals": residuals, "error": error}


def main() -> None:
    """Run all, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (rates, make) in OPTIMIZERS.items():
        for lr in rates:
            rows.append({"optimizer": name, "lr": lr, **trained(make, lr, arguments.steps)})
            print(f"{name:22} lr {lr:<6g} {rows[-1]['residuals']} error {rows[-1]['error']:.1e}", flush=True)
    if arguments.json:
        found = {"date": f"{date.today():%Y-%m-%d}", "torch": torch.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
