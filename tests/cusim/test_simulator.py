"""The simulator finds the faults it is there to find, and the shipped kernels have none under the sanitizers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cusim import simulated
from cusim.simulated import ORDERS, SANITIZED

HERE = Path(__file__).resolve().parent
REVERSED = torch.arange(63, -1, -1, dtype=torch.int32)


def library(sanitized: bool) -> Path:
    return simulated.build([HERE / "faulty_kernels.cu"], [], "faulty_kernels", sanitized)


@pytest.fixture(scope="module")
def faulty() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library(SANITIZED)))
    loaded.run.restype = ctypes.c_char_p
    return loaded


def run(faulty: ctypes.CDLL, kernel: str, order: str = "forward") -> torch.Tensor:
    faulty.cusim_set(ORDERS[order], 1, -1, 0, False)
    out = torch.zeros(64, dtype=torch.int32)
    complaint = faulty.run(kernel.encode(), ctypes.c_void_p(out.data_ptr())).decode()
    if complaint:
        raise RuntimeError(complaint)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_passes(faulty: ctypes.CDLL, order: str) -> None:
    assert torch.equal(run(faulty, "right", order), REVERSED)


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_shows_in_every_order(faulty: ctypes.CDLL, order: str) -> None:
    assert not torch.equal(run(faulty, "without_barrier", order), REVERSED)


def test_shared_memory_is_poisoned_for_every_block(faulty: ctypes.CDLL) -> None:
    for _ in range(2):
        assert run(faulty, "reads_before_writing")[-1] == -1


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("two_barriers", "wait at different barriers, in lines"),
        ("barrier_that_some_leave_out", "is not reached by all threads"),
        ("warp_sum_that_some_leave_out", "waits for lanes that never call it"),
        ("tiles_that_some_leave_out", "waits for lanes that never call it"),
        ("tiles_that_differ", "lanes of a warp name different tiles"),
        ("misaligned_tile", "a tile that is not aligned to 32 bytes"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_waiting_for_threads_that_never_come(faulty: ctypes.CDLL, kernel: str, message: str, order: str) -> None:
    with pytest.raises(RuntimeError, match=f"cusim: {kernel}: .*{message}"):
        run(faulty, kernel, order)


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_cores_drop_what_was_not_rounded(faulty: ctypes.CDLL, order: str) -> None:
    """Eight products of ``1 + 2^-11``, which is halfway between two numbers of TF32."""
    assert run(faulty, "rounded_tiles", order).eq(8 * 128 + 1).all()
    assert run(faulty, "unrounded_tiles", order).eq(8 * 128).all()


def in_sanitized_process(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **simulated.sanitizer_environment()}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *sys.path])
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=800
    )


@pytest.mark.skipif(SANITIZED, reason="this is the sanitized process")
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("beyond_global_memory", "heap-buffer-overflow"),
        ("beyond_shared_memory", "heap-buffer-overflow"),
        ("beyond_dynamic_memory", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers_find_the_line(kernel: str, message: str) -> None:
    code = f"""
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(256)))
ctypes.CDLL({str(library(sanitized=True))!r}).run({kernel.encode()!r}, out)
"""
    done = in_sanitized_process("-c", code)
    assert done.returncode != 0
    assert message in done.stderr
    assert "faulty_kernels.cu:" in done.stderr


# They count launches of hundreds of small tensors, at 256 simulated threads for each: no access that others do not make.
COUNTING = ("number_of_tensors", "not_depend_on_tensors", "number_of_layers", "many_layers", "table_of_layers")
# They repeat calls, whose accesses are the same, in other orders.
REPEATING = ("order_of_threads", "bits_in_every_order")
# One per kernel, of random shapes.
NOT_TO_MISS = (
    "test_random_lists", "test_master_weights", "test_small_equations_in_one_launch", "test_vector_phases",
    "test_refresh_of_layers_of_all_shapes", "test_gradients_are_averaged_where_they_are_read",
    "test_directions_of_all_shapes", "test_all_that_is_written", "test_random_models",
    "test_any_convolution_and_view",
)  # fmt: skip
KERNELS = (
    "test_multi_tensor_kernels.py", "test_pcg_kernels.py", "test_refresh_kernels.py", "test_fused_apply.py",
    "test_fused_direct.py", "test_fused_finish.py", "test_conv_moments.py",
)  # fmt: skip


@pytest.mark.skipif(SANITIZED, reason="this is the sanitized process")
def test_the_shipped_kernels_pass_the_sanitizers() -> None:
    tests = [str(HERE / name) for name in KERNELS]
    options = ["-v", "-x", "-s", "-p", "no:cacheprovider", "-k", f"not ({' or '.join((*COUNTING, *REPEATING))})"]
    done = in_sanitized_process("-m", "pytest", *options, *tests)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in NOT_TO_MISS:
        assert f"::{name}" in done.stdout, f"{name} did not run"
