"""The module's own threads: many callers, changing numbers of threads, and forks between calls.

Under ``make sanitize`` the thread sanitizer watches the pool in this process; elsewhere a forked child uses it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch

from lnb_kernels import _native

pytestmark = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


def dot(threads: int) -> bool:
    native = _native.module()
    x, y = torch.full((200_000,), 2.0), torch.full((200_000,), 3.0)
    kind = native.Type.FLOAT32
    return bool(native.dot([x.data_ptr()], kind, [y.data_ptr()], kind, [x.numel()], threads) == [1_200_000.0])


def averages(threads: int) -> bool:
    native = _native.module()
    kept, value = [torch.ones(70_000) for _ in range(3)], [torch.zeros(70_000) for _ in range(3)]
    kind, sizes = native.Type.FLOAT32, [70_000] * 3
    both = [x.data_ptr() for x in kept], kind, [x.data_ptr() for x in value], kind, sizes
    native.apply(*both, [1.0] * 3, 0.5, 1.0, threads)
    return all(torch.equal(x, torch.full_like(x, 0.5)) for x in kept)


def inverses(threads: int) -> bool:
    native = _native.module()
    matrices = 2 * torch.eye(24).repeat(40, 1, 1)
    inverse, failed = torch.empty_like(matrices), torch.zeros(40, dtype=torch.uint8)
    native.spd_inverses(matrices.data_ptr(), inverse.data_ptr(), failed.data_ptr(), 40, 24, threads)
    return torch.allclose(inverse, matrices / 4) and not failed.any()


CALLS: list[Callable[[int], bool]] = [dot, averages, inverses]


def many_callers() -> bool:
    """Six Python threads that call on one to four native threads each; the pool grows, and serves one at a time."""
    results: list[bool] = []

    def caller(first: int) -> None:
        results.extend(CALLS[(first + i) % len(CALLS)](1 + (first + i) % 4) for i in range(25))

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return results == [True] * 150


def in_child(body: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0 if body() else 1)
    return os.waitpid(child, 0)[1] == 0


def test_many_callers() -> None:
    assert many_callers()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_many_callers_of_the_pool_in_a_forked_child() -> None:
    assert dot(3)
    assert in_child(lambda: _native.module().threading() == "pool" and many_callers())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_child_has_a_pool_of_its_own() -> None:
    assert in_child(lambda: dot(4) and in_child(lambda: dot(2) and inverses(3)) and dot(4))
    assert dot(4)
