"""``spd_inverse``: the native kernel on every instruction set, against float64; matrices that have no factor; checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import assert_close_to_reference
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels import _native
from lnb_kernels.spd_inverse import native_kernel, reference

needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


def definite(count: int, n: int, ridge: float = 0.05) -> Tensor:
    x = torch.randn(count, n, 2 * n, dtype=torch.float64) * torch.logspace(-1, 1, n, dtype=torch.float64).unsqueeze(-1)
    a = (x @ x.mT / (2 * n) + ridge * torch.eye(n, dtype=torch.float64)).float()
    return (a + a.mT) / 2


def check(matrices: Tensor) -> None:
    inverses, failed = native_kernel.spd_inverse(matrices)
    assert not bool(failed.any())
    exact, _ = reference.spd_inverse(matrices.double())
    plain, _ = reference.spd_inverse(matrices)
    assert_close_to_reference(inverses, exact, plain)
    assert torch.equal(inverses, inverses.mT)


@needs_native
@pytest.mark.parametrize("n", [1, 2, 7, 16, 17, 47, 64, 123, 144, 256])
def test_error_is_that_of_lapack(isa: str, n: int) -> None:
    check(definite(24, n))  # many, so that largest errors compare


@needs_native
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(1, 100))
def test_any_side(count: int, n: int) -> None:
    matrices = definite(count, n)
    inverses, failed = native_kernel.spd_inverse(matrices.reshape(1, count, n, n))
    assert not bool(failed.any())
    torch.testing.assert_close(
        inverses[0].double() @ matrices.double(), torch.eye(n).double().expand(count, n, n), rtol=0, atol=1e-3
    )


@needs_native
def test_threads_and_layout_change_nothing() -> None:
    matrices = definite(9, 40)
    expected, _ = native_kernel.spd_inverse(matrices)
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            found, _ = native_kernel.spd_inverse(matrices.repeat_interleave(2, 0)[::2].mT)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("n", [3, 40])
def test_what_has_no_factor_is_told_and_the_others_are_done(backend: str, n: int) -> None:
    matrices = definite(6, n)
    matrices[0] = -matrices[0]
    matrices[2, n - 1, n - 1] = -1
    matrices[3, 0, 1] = matrices[3, 1, 0] = torch.nan
    matrices[4, n - 1, n - 1] = torch.inf
    matrices[5] = 0
    lk.set_backend(backend)
    try:
        inverses, failed = lk.spd_inverse(matrices)
    finally:
        lk.set_backend("auto")
    assert failed.tolist() == [True, False, True, True, True, True]
    torch.testing.assert_close(inverses[1].double() @ matrices[1].double(), torch.eye(n).double(), rtol=0, atol=1e-4)


@needs_native
def test_every_entry_is_written_and_nothing_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, matrices = 64, definite(3, 37)
    memory = torch.full((matrices.numel() + 2 * guard,), torch.nan)
    inside = memory[guard:-guard].view(matrices.shape)
    monkeypatch.setattr(Tensor, "new_empty", lambda _, shape: inside)
    native_kernel.spd_inverse(matrices)
    assert bool(inside.isfinite().all())
    assert bool(memory[:guard].isnan().all() and memory[-guard:].isnan().all())


def test_float64_large_and_no_matrices() -> None:
    for matrices in (definite(2, 5).double(), definite(1, 300), torch.zeros(0, 4, 4), torch.zeros(2, 0, 0)):
        inverses, failed = lk.spd_inverse(matrices)
        expected, _ = reference.spd_inverse(matrices)
        assert torch.equal(inverses, expected)
        assert not bool(failed.any())


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.lnb_kernels.spd_inverse.default, (definite(3, 8),))


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ([[1.0]], TypeError, "matrices"),
        (torch.eye(3).long(), TypeError, "matrices"),
        (torch.eye(3).bfloat16(), TypeError, "matrices are torch.bfloat16"),
        (torch.ones(3), ValueError, r"matrices has shape \(3,\)"),
        (torch.ones(3, 4), ValueError, r"matrices has shape \(3, 4\)"),
    ],
)
def test_bad_arguments_are_named(value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lk.spd_inverse(value)


def test_what_would_crash_is_refused() -> None:
    native = _native.module()
    x, y, failed = torch.eye(3), torch.empty(3, 3), torch.empty(1, dtype=torch.bool)
    a, b, flag = x.data_ptr(), y.data_ptr(), failed.data_ptr()
    for arguments, message in [
        ((0, b, flag, 1, 3, 1), "matrices has entries but a null pointer"),
        ((a + 2, b, flag, 1, 3, 1), "matrices is not aligned to its dtype: .* use .clone"),
        ((a, 0, flag, 1, 3, 1), "inverses has entries but a null pointer"),
        ((a, b, 0, 1, 3, 1), "failed has entries but a null pointer"),
        ((a, a + 4, flag, 1, 3, 1), "overlap in memory"),
        ((a, b, flag, 1, 0, 1), "no such matrices"),
        ((a, b, flag, 2**62, 3, 1), "matrices has more entries than can be counted"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.spd_inverses(*arguments)
