"""What every microbenchmark shares: devices and backends, fixed seeds, and rows that say where they were taken."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import lnb_kernels as lk
from lnb_kernels import _native


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
