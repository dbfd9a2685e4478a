"""What tests of ops share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lnb_kernels import _native

ISAS = ("avx512_bf16", "avx512", "avx2", "portable")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    native = _native.module()
    if request.param not in native.isas():
        pytest.skip(f"this CPU has no {request.param}")
    usual = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(usual)
