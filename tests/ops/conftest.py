"""What tests of ops share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lnb_kernels as lk
from lnb_kernels import _native

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
