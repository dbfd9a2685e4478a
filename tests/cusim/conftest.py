"""The simulator that the tests of CUDA kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cusim.simulated import Simulator, cuda_kernels_on_cpu


@pytest.fixture
def simulated() -> Iterator[Simulator]:
    with cuda_kernels_on_cpu() as simulator:
        yield simulator
