"""What tests of ops share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cusim.simulated import cuda_kernels_on_cpu

import lnb_kernels as lk
from lnb_kernels import _native

WHERE_NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
)
ISAS = ("avx512_bf16", "avx512", "avx2", "portable")


@pytest.fixture(params=["auto", "reference"])
def both_backends(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernel that serves the op here, and plain PyTorch, which it would else hide."""
    lk.set_backend(request.param)
    yield
    lk.set_backend("auto")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    native = _native.module()
    if request.param not in native.isas():
        pytest.skip(f"this CPU has no {request.param}")
    usual = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(usual)


@pytest.fixture(params=["reference", WHERE_NATIVE, "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":  # the CUDA kernels, simulated on the CPU
        with cuda_kernels_on_cpu():
            yield request.param
        return
    lk.set_backend(request.param)
    yield request.param
    lk.set_backend("auto")
