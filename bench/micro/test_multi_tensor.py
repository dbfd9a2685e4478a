"""The whole-model update of 10 million parameters in 200 tensors: native kernels, torch._foreach, fused AdamW, a copy.

`average_and_apply` is what every step of an optimizer with Nesterov's look-ahead needs; `update` takes the products of
directions and averages besides. A pass is one tensor read or written, and at equal bandwidth time goes by passes:

| call | reads | writes | passes | floor against AdamW |
| --- | --- | --- | --- | --- |
| fused AdamW | p, g, m, v | p, m, v | 7 | 1 |
| `average_and_apply` | g, m; h, p | m, z; p | 7 | 1 |
| `update` | g, m; h, m; h, p | m; p | 8 | 1.14 |
| `update_with_look_ahead` | g, m; h, z; h, p | m, z; p | 9 | 1.29 |
| `update_along_averages` | g, m; m, p | m; p | 6 | 0.86 |
| `foreach` | m; m, g; h, m; products; h; steps, p; p, steps | m; m; products; steps; steps; p | 17 | 2.43 |

So the product cannot come at AdamW's price as a pass of its own; and it has to be one: a product that is not finite, of any
layer, stops the whole step, so that all are known before the first parameter is written. (Product and apply of a piece
in one pass, without that promise, took 0.90 of the time of three passes.)

`foreach` against `update` is 17/8 = 2.1 at equal bandwidth, and 19/8 = 2.4 where the lines of new tensors are read before
they are written. A factor of 3 is out of reach as long as its new tensors come out of memory that is kept; where the system
makes their pages anew at every call, it is passed.

Of a call's time 0.25 to 0.4 ms is Python's, for 200 tensors in lists: checks of shapes, types and devices, and addresses;
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
    "average_and_apply": 7,
    "update": 8,
    "update_with_look_ahead": 9,
    "update_along_averages": 6,
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
        self.scales, self.shares = torch.full((TENSORS,), 0.5), torch.full((TENSORS,), BETA)

    def average_and_apply(self) -> list[Tensor]:
        """Average the gradients, look one step ahead, and apply a step."""
        ahead = multi_tensor.ema_combined_(self.averages, self.grads, BETA, self.shares, 1 - BETA)
        multi_tensor.apply_(self.params, self.directions, self.scales, LR, DECAY)
        return ahead

    def foreach_average_and_apply(self) -> list[Tensor]:
        """The same without these ops."""
        torch._foreach_mul_(self.averages, BETA)
        torch._foreach_add_(self.averages, self.grads, alpha=1 - BETA)
        ahead = torch._foreach_mul(self.averages, self.shares.tolist())
        torch._foreach_add_(ahead, self.grads, alpha=1 - BETA)
        self._foreach_apply()
        return ahead

    def update_with_look_ahead(self) -> Tensor:
        """:meth:`update` with it: all that a step does where the solver leaves no products."""
        ahead = multi_tensor.ema_combined_(self.averages, self.grads, BETA, self.shares, 1 - BETA)
        products = multi_tensor.dot(self.directions, ahead)
        multi_tensor.apply_(self.params, self.directions, self.scales, LR, DECAY)
        return products

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
        """What one would write without these ops, in place wherever torch allows it.

        Passes: scale m (2), add g to it (3), the products (3) and their sums (1), scale h (2), add the decay (3), to p (3).
        """
        torch._foreach_mul_(self.averages, BETA)
        torch._foreach_add_(self.averages, self.grads, alpha=1 - BETA)
        products = torch.stack([p.sum() for p in torch._foreach_mul(self.directions, self.averages)])
        self._foreach_apply()
        return products

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
    for a, b in zip(ours.average_and_apply(), plain.foreach_average_and_apply(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.update(), plain.foreach(), rtol=1e-4, atol=1e-2)
    for a, b in zip(ours.params + ours.averages, plain.params + plain.averages, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [*PASSES, "foreach", "foreach_average_and_apply"])
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
        "foreach_average_and_apply": Model().foreach_average_and_apply,
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
    rows["foreach / update"] = medians["foreach"] / medians["update"]
    rows["foreach / average_and_apply"] = medians["foreach_average_and_apply"] / medians["average_and_apply"]
    benchmark.extra_info |= {"milliseconds": {name: 1e3 * t for name, t in medians.items()}, "ratios": rows}
    print()
    for name, seconds in medians.items():
        print(f"  {name:28s} {1e3 * seconds:7.2f} ms")
    for name, ratio in rows.items():
        print(f"  {name:46s} {ratio:5.2f}")
