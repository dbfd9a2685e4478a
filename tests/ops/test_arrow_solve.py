"""``lk.arrow_solve`` against ``torch.linalg.solve`` with the arrow matrix written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, assert_close_to_reference
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import lnb_kernels as lk


def arrow(mu: torch.Tensor, var: torch.Tensor, bias: bool) -> torch.Tensor:
    """The matrix in float64, from its definition."""
    mu, var = mu.double(), var.double()
    if not bias:
        return torch.diag_embed(var + mu**2)
    d = mu.shape[-1]
    a = torch.zeros(*mu.shape[:-1], d + 1, d + 1, dtype=torch.float64)
    a[..., :d, :d] = torch.diag_embed(var) + mu.unsqueeze(-1) * mu.unsqueeze(-2)
    a[..., d, :d] = a[..., :d, d] = mu
    a[..., d, d] = 1
    return a


def arguments(
    batch: tuple[int, ...], m: int, d: int, bias: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    v = torch.randn(*batch, m, d + bias).to(dtype)
    return v, torch.randn(*batch, d).to(dtype), (torch.rand(*batch, d) + 0.5).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "m", "d"), [((), 1, 1), ((), 17, 7), ((3,), 5, 123), ((2, 2), 1, 9)], ids=str)
def test_matches_a_dense_solve(batch: tuple[int, ...], m: int, d: int, dtype: torch.dtype, bias: bool) -> None:
    v, mu, var = arguments(batch, m, d, bias, dtype)
    truth = torch.linalg.solve(arrow(mu, var, bias), v.double(), left=False)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plain = torch.linalg.solve(arrow(mu, var, bias).to(wide), v.to(wide), left=False).to(dtype)
    solved = lk.arrow_solve(v, mu, var, bias)
    assert solved.dtype == dtype
    assert_close_to_reference(solved, truth, plain)
    assert_close_to_reference(lk.arrow_solve(v.mT.contiguous().mT, mu, var, bias), truth, plain)


def test_one_row_needs_no_second_dimension() -> None:
    v, mu, var = arguments((), 1, 6, True, torch.float64)
    torch.testing.assert_close(lk.arrow_solve(v[0], mu, var), lk.arrow_solve(v, mu, var)[0])


def test_standardised_features_are_left_alone() -> None:
    v = torch.randn(4, 6)
    assert torch.equal(lk.arrow_solve(v, torch.zeros(5), torch.ones(5)), v)
    assert torch.equal(lk.arrow_solve(v, torch.zeros(6), torch.ones(6), bias=False), v)


def test_inverse_of_the_second_moment_of_uncorrelated_features() -> None:
    """Rows ``mu +- sigma_i e_i`` have an exactly diagonal covariance, so the arrow matrix is their second moment."""
    d = 5
    mu, sigma = torch.randn(d, dtype=torch.float64), torch.rand(d, dtype=torch.float64) + 0.5
    steps = torch.diag(sigma) * d**0.5
    s = lk.second_moment(torch.cat((mu + steps, mu - steps)))
    v = torch.randn(3, d + 1, dtype=torch.float64)
    solved = lk.arrow_solve(v, mu, sigma**2)
    torch.testing.assert_close(solved @ (s / s[-1, -1]), v)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)], ids=str)
def test_no_rows(shape: tuple[int, ...]) -> None:
    mu = torch.zeros(*shape[:-2], 3)
    assert lk.arrow_solve(torch.empty(shape), mu, mu + 1).shape == shape


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(0, 2**31 - 1))
def test_is_linear_and_symmetric(d: int, m: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    v, mu, var = arguments((), m, d, bias, torch.float64)
    w = torch.randn_like(v)
    pv, pw = lk.arrow_solve(v, mu, var, bias), lk.arrow_solve(w, mu, var, bias)
    torch.testing.assert_close(lk.arrow_solve(2 * v - w, mu, var, bias), 2 * pv - pw)
    torch.testing.assert_close((pv * w).sum(), (v * pw).sum())
    assert (pv * v).sum().item() > 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_derivatives(batch: tuple[int, ...], bias: bool) -> None:
    v, mu, var = (t.requires_grad_() for t in arguments(batch, 3, 4, bias, torch.float64))
    assert gradcheck(lambda *args: lk.arrow_solve(*args, bias), (v, mu, var))
    assert gradgradcheck(lambda *args: lk.arrow_solve(*args, bias), (v, mu, var))
    assert gradcheck(
        lambda row: lk.arrow_solve(row, torch.ones(2).double(), torch.ones(2).double()), (v.flatten()[:3],)
    )


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias: bool) -> None:
    args = tuple(t.requires_grad_() for t in arguments((2,), 3, 4, bias, torch.float32))
    opcheck(torch.ops.lnb_kernels.arrow_solve.default, (*args, bias))


def test_bad_arguments_are_named() -> None:
    v, mu, var = torch.ones(3, 5), torch.ones(4), torch.ones(4)
    with pytest.raises(ValueError, match=r"arrow_solve: mu has shape \(5,\), allowed is \(4,\)"):
        lk.arrow_solve(v, torch.ones(5), var)
    with pytest.raises(ValueError, match=r"arrow_solve: var has shape \(4,\), allowed is \(5,\)"):
        lk.arrow_solve(v, torch.ones(5), var, bias=False)
    with pytest.raises(TypeError, match=r"arrow_solve: mu must be a torch.Tensor, got float"):
        lk.arrow_solve(v, 1.0, var)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"arrow_solve: v has dtype torch.complex64"):
        lk.arrow_solve(v.to(torch.complex64), mu, var)
