"""Conjugate gradients with the native CPU loops: every instruction set against the iteration in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pcg_support import check, double, equation

import lnb_kernels as lk
from lnb_kernels import _native
from lnb_kernels.pcg import native_kernel, reference

pytestmark = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_kernel, "SMALL", 0)


FLAGS = [(bias, start, arrow) for bias in (True, False) for start in (True, False) for arrow in (True, False)]


@pytest.mark.parametrize("scope", ["layer", "neuron"])
@pytest.mark.parametrize(("bias", "start", "arrow"), FLAGS, ids=str)
def test_follows_the_iteration(isa: str, scope: str, bias: bool, start: bool, arrow: bool) -> None:
    for batch, m, d in (((8,), 40, 33), ((16,), 20, 150), ((60, 2), 9, 3)):  # many units: largest errors compare
        for iterations in (0, 1, 3):
            check(native_kernel.pcg_moment, equation(batch, m, d, bias, start, arrow), iterations, 0.1, scope, orders=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 60), d=st.integers(1, 200), layers=st.integers(1, 3), groups=st.integers(1, 3), bias=st.booleans(),
    start=st.booleans(), arrow=st.booleans(), scope=st.sampled_from(["layer", "neuron"]), layer_dims=st.sampled_from([2, 3]),
)  # fmt: skip
def test_any_shape(
    m: int, d: int, layers: int, groups: int, bias: bool, start: bool, arrow: bool, scope: str, layer_dims: int
) -> None:
    tensors = equation((layers, groups), m, d, bias, start, arrow)
    found = native_kernel.pcg_moment(*tensors.values(), 2, 0.1, scope, layer_dims)
    expected = reference.pcg_moment(*double(tensors).values(), 2, 0.1, scope, layer_dims)
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))


@pytest.mark.parametrize("scope", ["layer", "neuron"])
def test_a_callable_sees_what_it_should(isa: str, scope: str) -> None:
    """With products by the caller, one of which hands back its own argument."""
    tensors = equation((2,), 9, 20, True, True, True)

    def by_products(
        s: Any, g: Any, h0: Any, mu: Any, var: Any, iterations: int, ridge: float, scope: str, dims: int
    ) -> Any:
        a = reference.metric(s, g.shape[-1], ridge)
        iterate = reference.iterate if g.dtype == torch.float64 else native_kernel.iterate
        return iterate(lambda v: v @ a, g, h0, mu, var, True, iterations, scope, dims)

    check(by_products, tensors, 3, 0.1, scope)
    g = tensors["g"]
    h, norms = native_kernel.iterate(lambda v: v, g, None, None, None, False, 1, scope, 2)
    torch.testing.assert_close(h, g)
    assert bool((norms[1] <= 1e-5 * norms[0]).all())


def test_units_that_are_done_stay(isa: str) -> None:
    tensors = equation((), 3, 12, True, True, False)
    dense = reference.metric(tensors["s"].double(), 13, 0.1)
    exact = torch.linalg.solve(dense, tensors["g"].double(), left=False).float()
    tensors["h0"][0] = exact[0]
    h, norms = native_kernel.pcg_moment(*tensors.values(), 3, 0.1, "neuron", 2)
    assert torch.equal(h[0], exact[0])
    assert bool((norms[:, 0] == norms[0, 0]).all())
    assert bool((norms[3, 1:] < norms[0, 1:]).all())
    flat, _ = native_kernel.iterate(lambda v: -v, tensors["g"], None, None, None, True, 3, "layer", 2)
    assert torch.equal(flat, torch.zeros_like(flat))  # no step along a direction without curvature


def test_no_rows_is_a_metric_of_the_ridge_alone() -> None:
    h, _ = native_kernel.pcg_moment(torch.zeros(5, 5), torch.ones(3, 4), None, None, None, 1, 0.5, "layer", 2)
    torch.testing.assert_close(h, 2 * torch.ones(3, 4))


def test_bits_do_not_depend_on_threads_and_arguments_stay() -> None:
    tensors, usual = equation((), 400, 130, True, True, True), torch.get_num_threads()
    before = {name: value.clone() for name, value in tensors.items()}
    product = torch.randn(400, 131)  # a product of the BLAS may depend on threads
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(
                native_kernel.iterate(lambda v: product * v, *list(tensors.values())[1:], True, 2, "layer", 2)
            )
    finally:
        torch.set_num_threads(usual)
    for h, norms in results[1:]:
        assert torch.equal(h, results[0][0])
        assert torch.equal(norms, results[0][1])
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())


def test_it_serves_the_op() -> None:
    tensors = equation((), 6, 10, True, True, True)
    arrow = tensors["mu"], tensors["var"]
    expected = native_kernel.pcg_moment(*tensors.values(), 2, 0.1, "layer", 2)
    for a, b in zip(lk.pcg(tensors["s"], tensors["g"], tensors["h0"], arrow, ridge=0.1), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("tensors", 3), 0, "h has entries but a null pointer"),
        (("tensors", 6), 0, "ap has entries but a null pointer"),
        (("tensors", 4), 1026, "r is not aligned to its dtype"),
        (("tensors", 1), 0, "mu and var come together"),
        (("tensors", 1), 1026, "mu is not aligned to its dtype"),
        (("shape", 3), 4, "no such layers"),
        (("shape", 1), 2**62, "rows has more entries than can be counted"),
        (("units", 2), 0, "units has entries but a null pointer"),
        (("units", 2), 1028, "units is not aligned to its dtype"),
        (("per_unit", 0), 3, "rows_per_unit must divide the rows"),
        (("per_unit", 0), 2, "STEP needs a unit per row"),
    ],
)
def test_what_would_crash_is_refused(place: tuple[str, int], value: int, message: str) -> None:
    native = _native.module()
    x, sums = torch.zeros(4, 6), torch.zeros(6, 4, dtype=torch.float64)
    given = {
        "tensors": [x.data_ptr()] * 7, "shape": [1, 4, 6, 5], "units": [row.data_ptr() for row in sums], "per_unit": [1]
    }  # fmt: skip
    rows = list(given["units"])
    given[place[0]][place[1]] = value
    with pytest.raises(ValueError, match=message):
        native.cg_phase(
            native.Phase.STEP, given["tensors"], given["shape"], *given["per_unit"], given["units"], rows, 1e-5, 1
        )
