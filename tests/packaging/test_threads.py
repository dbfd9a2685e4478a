"""The native threads: torch's own team, or sleeping threads in a forked child; callers from many threads."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from lnb_kernels import _native
from lnb_kernels.multi_tensor import native_kernel

pytestmark = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


def work(threads: int) -> bool:
    """A calculation on several threads, checked."""
    native = _native.module()
    x, y = torch.full((200_000,), 2.0), torch.full((200_000,), 3.0)
    kind, sizes = native.Type.FLOAT32, [200_000]
    return bool(native.dot([x.data_ptr()], kind, [y.data_ptr()], kind, sizes, threads) == [1_200_000.0])


def test_torch_runs_the_threads_where_it_has_openmp() -> None:
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch is built without OpenMP")
    assert _native.module().threading() == "openmp"
    assert work(4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_computes_and_ends() -> None:
    assert work(2)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        right = _native.module().threading() == "pool" and all(
            work(threads) for threads in (1, 2, 4, 3) for _ in range(50)
        )
        os.write(write, b"right" if right else b"wrong")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert os.read(read, 5) == b"right"
    os.close(read)
    os.close(write)
    assert work(2)


def test_calls_from_many_python_threads() -> None:
    results: list[bool] = []

    def caller() -> None:
        results.extend(work(2) for _ in range(20))

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert results == [True] * 80


def test_more_threads_than_work() -> None:
    x = [torch.ones(3)]
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        native_kernel.apply_(x, [torch.ones(3)], torch.ones(1), 0.5, None, 0.0, None, None)
    finally:
        torch.set_num_threads(usual)
    assert torch.equal(x[0], torch.full((3,), 0.5))
