"""What every microbenchmark shares: devices and backends, fixed seeds, and rows that say where they were taken."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels import _backend, _cuda, _native


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    lk.set_backend("auto")


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """``measure(call, device, **info)``: rounds of one call; on a GPU, until the GPU is done."""

    def run(call: Callable[[], object], device: str, **info: Any) -> None:
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        benchmark.extra_info |= {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
        benchmark.extra_info |= {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
        if _native.failure() is None:
            benchmark.extra_info["isa"] = _native.module().isa()
        benchmark.extra_info |= info

        def synchronised() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(synchronised, rounds=15, warmup_rounds=3)

    return run


def missing(op: str, who: str, device: str) -> str | None:
    """Why backend ``who`` does not serve ``op`` on ``device`` here; None where it does."""
    if who in ("plain", "reference"):
        return None
    if who == "triton" and device != "cuda":
        return "triton runs on a GPU only"
    kernel = "native-cuda" if (who, device) == ("native", "cuda") else who
    if kernel not in _backend.routes()[op].kernels:
        return f"{op} has no {kernel} kernel"
    return {"native": _native.failure, "native-cuda": lambda: _cuda.failure_on(0), "triton": lambda: None}[kernel]()


def largest_error(actual: Any, expected: Any) -> float:
    """Of a tensor or nested sequences of them, relative to the largest entry of each."""
    if isinstance(actual, Tensor):
        difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
        return float(difference)
    return max(largest_error(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.fixture
def compare(measure: Callable[..., None]) -> Callable[..., None]:
    """``compare(op, who, device, make)``: check and time one of the sides of the case that ``make()`` gives.

    A case has ``ours``, ``plain``, what one would write without the op, and ``rtol``, how far the two may be apart.
    """

    def run(op: str, who: str, device: str, make: Callable[[], Any]) -> None:
        reason = missing(op, who, device)
        if reason is not None:
            pytest.skip(reason)
        case = make()
        if who != "plain":
            lk.set_backend(who)
        error = largest_error(case.ours(), case.plain())
        assert error <= case.rtol, f"{who} is wrong by {error:.1e}: no speed of wrong results"
        measure(case.plain if who == "plain" else case.ours, device, backend=who, error=error)

    return run
