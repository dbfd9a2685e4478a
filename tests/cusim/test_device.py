"""The device that kernels work on: made current for a call, without leaving contexts on others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cusim.simulated import Simulator, simulator


@pytest.fixture
def simulated() -> Iterator[Simulator]:
    found = simulator()
    found.set()
    yield found
    found.devices(1)
    found.set()


@pytest.mark.parametrize("current", [-1, 0, 1])
@pytest.mark.parametrize("device", [0, 1])
def test_a_call_leaves_the_threads_context_and_makes_none_elsewhere(
    simulated: Simulator, device: int, current: int
) -> None:
    """A process that works on device 1 alone pays for no context on device 0."""
    simulated.devices(2, current)
    native, x = simulated.module, torch.full((4,), 2.0)
    sums = torch.zeros(1, dtype=torch.float64)
    kind, a = native.Type.FLOAT32, [x.data_ptr()]
    native.dot(a, kind, a, kind, [4], [0], sums.data_ptr(), (device, 0))
    assert sums.item() == 16.0
    assert simulated.contexts == (current, [i in (device, current) for i in range(2)])
    assert native.failure(device) == ""
    assert simulated.contexts == (current, [i in (device, current) for i in range(2)])


def test_the_threads_context_comes_back_after_an_error(simulated: Simulator) -> None:
    simulated.devices(2, 0)
    native, x, kind = simulated.module, torch.ones(4), simulated.module.Type.FLOAT32
    simulated.set(fail_launch=0)
    with pytest.raises(RuntimeError, match="failed"):
        native.dot([x.data_ptr()], kind, [x.data_ptr()], kind, [4], [0], x.data_ptr(), (1, 0))
    assert simulated.contexts[0] == 0
    with pytest.raises(RuntimeError, match="cudaSetDevice failed"):
        native.dot([], kind, [], kind, [], [], 0, (2, 0))
    assert simulated.contexts == (0, [True, True])
