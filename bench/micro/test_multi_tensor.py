"""The whole-model update of 10 million parameters in 200 tensors: native kernels, torch._foreach, fused AdamW, a copy.

Rounds of the competitors alternate, so that a slow moment of the machine hits all of them. Run by `make bench`; timings
are in the table and, with `--benchmark-json=FILE`, in a file with machine and versions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels import _native, multi_tensor

TENSORS, SIZE = 200, 50_000
BETA, LR, DECAY = 0.9, 0.01, 1e-4


def tensors() -> list[Tensor]:
    return [torch.randn(SIZE) for _ in range(TENSORS)]


class Model:
    """What one update reads and writes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.averages, self.grads, self.directions, self.params = tensors(), tensors(), tensors(), tensors()
        self.scales = torch.full((TENSORS,), 0.5)

    def update(self) -> Tensor:
        """Average the gradients, take the products of directions and averages, apply the step."""
        multi_tensor.ema_(self.averages, self.grads, BETA)
        products = multi_tensor.dot(self.directions, self.averages)
        multi_tensor.apply_(self.params, self.directions, self.scales, LR, DECAY)
        return products

    def update_along_averages(self) -> Tensor:
        """The same where directions are the averages: their norms come with the average."""
        norms = multi_tensor.ema_squared_norms_(self.averages, self.grads, BETA)
        multi_tensor.apply_(self.params, self.averages, self.scales, LR, DECAY)
        return norms

    def foreach(self) -> Tensor:
        """What one would write without these ops, in place wherever torch allows it."""
        torch._foreach_mul_(self.averages, BETA)
        torch._foreach_add_(self.averages, self.grads, alpha=1 - BETA)
        products = torch.stack([p.sum() for p in torch._foreach_mul(self.directions, self.averages)])
        steps = torch._foreach_mul(self.directions, self.scales.tolist())
        torch._foreach_add_(steps, self.params, alpha=DECAY)
        torch._foreach_add_(self.params, steps, alpha=-LR)
        return products


def adamw() -> Callable[[], object]:
    params = [torch.nn.Parameter(tensor) for tensor in tensors()]
    for param in params:
        param.grad = torch.randn(SIZE)
    return torch.optim.AdamW(params, lr=LR, fused=True).step


def copy() -> Callable[[], object]:
    source = torch.randn(TENSORS * SIZE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


@pytest.fixture(scope="module")
def verified() -> None:
    """No speed is reported for a wrong result."""
    if _native.failure() is not None:
        pytest.skip(str(_native.failure()))
    ours, plain = Model(), Model()
    torch.testing.assert_close(ours.update(), plain.foreach(), rtol=1e-4, atol=1e-2)
    for a, b in zip(ours.params + ours.averages, plain.params + plain.averages, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["update", "update_along_averages", "foreach", "adamw", "copy"])
def test_time(benchmark, verified: None, kind: str) -> None:
    call = {"adamw": adamw, "copy": copy}[kind]() if kind in ("adamw", "copy") else getattr(Model(), kind)
    call()
    benchmark.extra_info |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    benchmark.extra_info |= {"isa": _native.module().isa(), "backend": lk.get_backend()}
    benchmark.pedantic(call, rounds=30, warmup_rounds=3)


def test_ratios(benchmark, verified: None) -> None:
    """Medians of alternating rounds, and what they mean: bytes are those that the update must move."""
    calls = {
        "update": Model().update,
        "update_along_averages": Model().update_along_averages,
        "foreach": Model().foreach,
        "adamw": adamw(),
        "copy": copy(),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}

    def interleaved() -> None:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)

    benchmark.pedantic(interleaved, rounds=30, warmup_rounds=3)
    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    bandwidth = 8 * TENSORS * SIZE * 4 / medians["update"], 2 * TENSORS * SIZE * 4 / medians["copy"]
    rows = {
        "update / fused AdamW": medians["update"] / medians["adamw"],
        "update along averages / fused AdamW": medians["update_along_averages"] / medians["adamw"],
        "foreach / update": medians["foreach"] / medians["update"],
        "bandwidth of update / of copy": bandwidth[0] / bandwidth[1],
    }
    benchmark.extra_info |= {"milliseconds": {name: 1e3 * t for name, t in medians.items()}, "ratios": rows}
    print()
    for name, seconds in medians.items():
        print(f"  {name:24s} {1e3 * seconds:7.2f} ms")
    for name, ratio in rows.items():
        print(f"  {name:38s} {ratio:5.2f}")
