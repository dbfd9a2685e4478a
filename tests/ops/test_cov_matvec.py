"""``lk.cov_matvec`` against the matrix written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, assert_close_to_reference, layouts
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import lnb_kernels as lk


def matrix(x: torch.Tensor, size: int, ridge: float) -> torch.Tensor:
    """``X~'X~ / N + ridge diag(1..1, 0)`` in the dtype of ``x``, from its definition."""
    d = x.shape[-1]
    rows = x.reshape(-1, d)
    if size > d:
        rows = torch.cat((rows, rows.new_ones(rows.shape[0], 1)), 1)
    diagonal = torch.full((size,), ridge, dtype=x.dtype)
    diagonal[d:] = 0
    return rows.t() @ rows / max(rows.shape[0], 1) + torch.diag(diagonal)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "vectors", "d"),
    [((1,), (1,), 1), ((57,), (3,), 7), ((3, 40), (1,), 123), ((2, 3, 5), (2, 3), 7), ((50,), (), 9)],
    ids=str,
)
def test_matches_float64_truth(
    rows: tuple[int, ...], vectors: tuple[int, ...], d: int, dtype: torch.dtype, bias: bool
) -> None:
    values, v = torch.randn(*rows, d).to(dtype), torch.randn(*vectors, d + bias).to(dtype)
    truth = v.double() @ matrix(values.double(), d + bias, 0.3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plain = (v.to(wide) @ matrix(values.to(wide), d + bias, 0.3)).to(dtype)
    for name, x in layouts(values):
        product = lk.cov_matvec(x, v, 0.3)
        assert product.dtype == dtype, name
        assert_close_to_reference(product, truth, plain)


def test_agrees_with_the_second_moment() -> None:
    x, v = torch.randn(30, 6, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    s = lk.second_moment(x)
    torch.testing.assert_close(lk.cov_matvec(x, v), v @ (s / s[-1, -1]))


def test_without_rows_the_ridge_remains() -> None:
    v = torch.randn(3, 5)
    assert torch.equal(lk.cov_matvec(torch.empty(0, 5), v, 0.5), 0.5 * v)
    with_bias = lk.cov_matvec(torch.empty(0, 4), v, 0.5)
    assert torch.equal(with_bias[:, :4], 0.5 * v[:, :4])
    assert torch.equal(with_bias[:, 4], torch.zeros(3))


def test_without_vectors() -> None:
    assert lk.cov_matvec(torch.randn(6, 5), torch.empty(0, 5)).shape == (0, 5)


def test_orthonormal_features_scale_by_their_count() -> None:
    q, _ = torch.linalg.qr(torch.randn(20, 4, dtype=torch.float64))
    v = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(lk.cov_matvec(q, v, 0.1), v * (1 / 20 + 0.1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.integers(0, 2**31 - 1))
def test_is_symmetric_and_positive(n: int, d: int, m: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64)
    v, w = torch.randn(2, m, d + bias, dtype=torch.float64)
    torch.testing.assert_close((lk.cov_matvec(x, v, 0.2) * w).sum(), (lk.cov_matvec(x, w, 0.2) * v).sum())
    assert (lk.cov_matvec(x, v, 0.2) * v).sum().item() >= 0.2 * v[:, :d].square().sum().item() * (1 - 1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_derivatives(bias: bool) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 4 + bias, dtype=torch.float64, requires_grad=True)
    for args in ((x, v), (x.detach(), v), (x, v.detach())):
        assert gradcheck(lambda x, v: lk.cov_matvec(x, v, 0.3), args)
        assert gradgradcheck(lambda x, v: lk.cov_matvec(x, v, 0.3), args)


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias: bool) -> None:
    x, v = torch.randn(4, 3, 5, requires_grad=True), torch.randn(2, 5 + bias, requires_grad=True)
    opcheck(torch.ops.lnb_kernels.cov_matvec.default, (x, v, 0.3))
    opcheck(torch.ops.lnb_kernels.cov_matvec.default, (x.detach().bfloat16(), v.detach().mT.contiguous().mT, 0.0))


def test_bad_arguments_are_named() -> None:
    x, v = torch.ones(4, 3), torch.ones(2, 3)
    with pytest.raises(
        ValueError, match=r"cov_matvec: v has shape \(2, 5\); its last dimension must be d=3 of x, or d\+1=4"
    ):
        lk.cov_matvec(x, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"cov_matvec: ridge=-0.1 is not allowed; it must be a finite number >= 0"):
        lk.cov_matvec(x, v, -0.1)
    with pytest.raises(ValueError, match=r"ridge=nan"):
        lk.cov_matvec(x, v, float("nan"))
    with pytest.raises(TypeError, match=r"ridge must be a number >= 0, got '1'"):
        lk.cov_matvec(x, v, "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"v is on meta but x is on cpu"):
        lk.cov_matvec(x, v.to("meta"))
