"""The whole-model update of 10 million parameters in 200 tensors: native kernels, torch._foreach, fused AdamW, a copy.

`update` is what a step of the default preset does to a model's tensors beside solving: the average of the gradients with
Nesterov's look-ahead, and the decayed step; the solver gives the products of directions and gradients. Other solvers leave
them to a pass of their own, `update_with_products`. A pass is one tensor read or written, and at equal bandwidth time goes
by passes:

| call | reads | writes | passes | floor against AdamW |
| --- | --- | --- | --- | --- |
| fused AdamW | p, g, m, v | p, m, v | 7 | 1 |
| `update` | g, m; h, p | m, z; p | 7 | 1 |
| `update_with_products` | g, m; h, z; h, p | m, z; p | 9 | 1.29 |
| `foreach` | m; m, g; m; z, g; h; steps, p; p, steps | m; m; z; z; steps; steps; p | 18 | 2.57 |

Products cannot wait for the pass that applies the step: one that is not finite, of any layer, stops the whole step, so that
all are known before the first parameter is written. Where one core reads no faster than memory delivers, writes cost
nothing and time goes by reads: 4 of AdamW, 4 of `update`, 6 with products. These go through the lists backwards, for what
the average left in the cache.

`foreach` against `update` is 18/7 = 2.6 at equal bandwidth, and 22/7 = 3.1 where the lines of new tensors (z twice, steps
twice) are read before they are written.

Of a call's time 0.25 to 0.45 ms is Python's, for 200 tensors in lists: checks of shapes, types and devices, and addresses;
fused AdamW has 0.9 ms for all of a step.

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
PASSES = {
    "update": 7,
    "update_with_products": 9,
    "adamw": 7,
    "copy": 2,
}


def tensors() -> list[Tensor]:
    return [torch.randn(SIZE) for _ in range(TENSORS)]


class Model:
    """What one update reads and writes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.averages, self.grads, self.directions, self.params = tensors(), tensors(), tensors(), tensors()
        self.ahead = tensors()
        self.scales, self.shares = torch.full((TENSORS,), 0.5), torch.full((TENSORS,), BETA)

    def update(self) -> None:
        """Average the gradients, look one step ahead, and apply a step."""
        self._look_ahead()
        self._apply(self.directions)

    def update_with_products(self) -> Tensor:
        """The same where the solver leaves no products of directions and gradients."""
        self._look_ahead()
        products = multi_tensor.dot(self.directions, self.ahead)
        self._apply(self.directions)
        return products

    def _look_ahead(self) -> None:
        multi_tensor.ema_combined_(self.averages, self.grads, BETA, self.shares, 1 - BETA, out=self.ahead)

    def _apply(self, directions: list[Tensor]) -> None:
        multi_tensor.apply_(self.params, directions, self.scales, LR, DECAY)

    def foreach(self) -> None:
        """:meth:`update` as one would write it without these ops, in place wherever torch allows it.

        Passes: scale m (2), add g to it (3), scale it into z (2), add g (3), scale h (2), add the decay (3), to p (3).
        """
        torch._foreach_mul_(self.averages, BETA)
        torch._foreach_add_(self.averages, self.grads, alpha=1 - BETA)
        self.ahead = list(torch._foreach_mul(self.averages, self.shares.tolist()))
        torch._foreach_add_(self.ahead, self.grads, alpha=1 - BETA)
        self._foreach_apply()

    def foreach_with_products(self) -> Tensor:
        """:meth:`update_with_products` likewise: 4 passes more, for the products and their sums."""
        self.foreach()
        return torch.stack([p.sum() for p in torch._foreach_mul(self.directions, self.ahead)])

    def _foreach_apply(self) -> None:
        steps = torch._foreach_mul(self.directions, self.scales.tolist())
        torch._foreach_add_(steps, self.params, alpha=DECAY)
        torch._foreach_add_(self.params, steps, alpha=-LR)


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
    # A freed block of almost 32 MiB makes glibc keep freed memory, as a training step's activations do; without one, the
    # new tensors of every call would be timed with the system's making of their pages.
    large = torch.empty(31 << 18)
    del large
    ours, plain = Model(), Model()
    torch.testing.assert_close(ours.update_with_products(), plain.foreach_with_products(), rtol=1e-4, atol=1e-2)
    ours.update()
    plain.foreach()
    for a, b in zip(ours.params + ours.averages + ours.ahead, plain.params + plain.averages + plain.ahead, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [*PASSES, "foreach", "foreach_with_products"])
def test_time(benchmark, verified: None, kind: str) -> None:
    call = {"adamw": adamw, "copy": copy}[kind]() if kind in ("adamw", "copy") else getattr(Model(), kind)
    call()
    benchmark.extra_info |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    benchmark.extra_info |= {"isa": _native.module().isa(), "backend": lk.get_backend()}
    benchmark.pedantic(call, rounds=30, warmup_rounds=3)


def test_ratios(benchmark, verified: None) -> None:
    """Medians of alternating rounds, and what they mean: bytes are those that the update must move."""
    calls = {
        **{name: getattr(Model(), name) for name in PASSES if hasattr(Model, name)},
        "foreach": Model().foreach,
        "foreach_with_products": Model().foreach_with_products,
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
    bandwidth = {name: passes * TENSORS * SIZE * 4 / medians[name] for name, passes in PASSES.items()}
    # Ratios round by round: a moment in which the machine is busy with something else hits both.
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name][3:], times["adamw"][3:], strict=True))
        for name in PASSES
    }
    rows = {f"{name} / fused AdamW": ratios[name] for name in PASSES if name != "copy"}
    rows |= {f"  passes of {name} / of AdamW": PASSES[name] / PASSES["adamw"] for name in PASSES if name != "copy"}
    rows |= {f"bandwidth of {name} / of copy": bandwidth[name] / bandwidth["copy"] for name in PASSES}
    for suffix in ("", "_with_products"):
        rows[f"foreach{suffix} / update{suffix}"] = medians[f"foreach{suffix}"] / medians[f"update{suffix}"]
    benchmark.extra_info |= {"milliseconds": {name: 1e3 * t for name, t in medians.items()}, "ratios": rows}
    print()
    for name, seconds in medians.items():
        print(f"  {name:28s} {1e3 * seconds:7.2f} ms")
    for name, ratio in rows.items():
        print(f"  {name:46s} {ratio:5.2f}")
