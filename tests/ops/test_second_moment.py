"""``lk.second_moment`` against ``[X 1]'[X 1]`` written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, assert_close_to_reference, layouts, with_ones
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import lnb_kernels as lk


def plain(x: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    rows = rows.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    rows = torch.cat((rows, rows.new_ones(rows.shape[0], 1)), 1)
    return rows.t() @ rows


@pytest.mark.usefixtures("both_backends")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (1, 1), (57, 7), (300, 123), (3, 41, 123), (2, 3, 5, 7), (900, 300)], ids=str
)
def test_matches_float64_truth(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = (torch.randn(shape) + 0.5).to(dtype)
    rows = with_ones(values)
    for name, x in layouts(values):
        s = lk.second_moment(x)
        assert s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        assert_close_to_reference(s, rows.t() @ rows, plain(values))
        assert s[-1, -1].item() == rows.shape[0], name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(33, 7), (3, 20, 123), (600, 400)], ids=str)
def test_weights_count_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weights = torch.randn(shape).to(dtype), torch.rand(shape[:-1]).to(dtype)
    rows, w = with_ones(x), weights.double().reshape(-1, 1)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    r = torch.cat((x.reshape(-1, shape[-1]).to(accumulate), torch.ones(w.shape[0], 1, dtype=accumulate)), 1)
    assert_close_to_reference(lk.second_moment(x, weights), (rows * w).t() @ rows, (r * w.to(accumulate)).t() @ r)
    ones = torch.ones(shape[:-1], dtype=dtype)
    torch.testing.assert_close(lk.second_moment(x, ones), lk.second_moment(x), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("both_backends")
def test_large_products_take_blocks_and_stay_symmetric() -> None:
    """Above the size from which only half of the blocks are computed."""
    x = torch.randn(2500, 407)
    rows = with_ones(x)
    s = lk.second_moment(x)
    assert_close_to_reference(s, rows.t() @ rows, plain(x))
    torch.testing.assert_close(s, s.t(), rtol=1e-6, atol=1e-3)


@pytest.mark.usefixtures("both_backends")
@pytest.mark.parametrize("shape", [(0, 5), (4, 0, 5), (0, 300)], ids=str)
def test_no_rows_give_zeros(shape: tuple[int, ...]) -> None:
    assert torch.equal(lk.second_moment(torch.empty(shape)), torch.zeros(shape[-1] + 1, shape[-1] + 1))
    weights = torch.empty(shape[:-1])
    assert torch.equal(lk.second_moment(torch.empty(shape), weights), torch.zeros(shape[-1] + 1, shape[-1] + 1))


def test_no_features_leave_the_count() -> None:
    assert torch.equal(lk.second_moment(torch.empty(6, 0)), torch.tensor([[6.0]]))
    assert torch.equal(lk.second_moment(torch.empty(6, 0), blocks=2), torch.tensor([[[6.0]], [[6.0]]]))


def test_orthonormal_features_give_the_identity() -> None:
    q, _ = torch.linalg.qr(torch.randn(50, 9, dtype=torch.float64))
    s = lk.second_moment(q)
    torch.testing.assert_close(s[:9, :9], torch.eye(9, dtype=torch.float64))


def test_one_row_is_an_outer_product() -> None:
    x = torch.randn(5)
    row = torch.cat((x, torch.ones(1)))
    assert torch.equal(lk.second_moment(x), torch.outer(row, row))


@pytest.mark.usefixtures("both_backends")
def test_autocast_does_not_reach_the_statistics() -> None:
    x = torch.randn(300, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lk.second_moment(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, lk.second_moment(x))


rows_and_features = st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(0, 2**31 - 1))


@settings(max_examples=40, deadline=None)
@given(rows_and_features, st.integers(0, 40))
def test_adds_over_any_split_of_the_rows(size: tuple[int, int, int], cut: int) -> None:
    n, d, seed = size
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    parts = lk.second_moment(x[: min(cut, n)]) + lk.second_moment(x[min(cut, n) :])
    torch.testing.assert_close(parts, lk.second_moment(x))


@settings(max_examples=40, deadline=None)
@given(rows_and_features)
def test_is_symmetric_positive_and_blind_to_the_order_of_rows(size: tuple[int, int, int]) -> None:
    n, d, seed = size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    s = lk.second_moment(x)
    torch.testing.assert_close(s, s.t())
    assert torch.linalg.eigvalsh(s).min().item() >= -1e-10 * max(1.0, s.diagonal().max().item())
    torch.testing.assert_close(lk.second_moment(x[torch.randperm(n, generator=generator)]), s)


@settings(max_examples=40, deadline=None)
@given(rows_and_features, st.floats(-3, 3))
def test_shift_of_the_features(size: tuple[int, int, int], shift: float) -> None:
    """``[X + c, 1] = [X 1] T`` with ``T`` the identity but for ``c`` in its last row, so ``S`` becomes ``T'S T``."""
    n, d, seed = size
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    t = torch.eye(d + 1, dtype=torch.float64)
    t[-1, :-1] = shift
    torch.testing.assert_close(lk.second_moment(x + shift), t.t() @ lk.second_moment(x) @ t, rtol=1e-9, atol=1e-9)


def test_derivatives() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    for args in ((x,), (x, weights), (x.detach(), weights), (x, weights.detach())):
        assert gradcheck(lk.second_moment, args)
        assert gradgradcheck(lk.second_moment, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5).to(dtype).requires_grad_()
    weights = torch.rand(3, 4).to(dtype).requires_grad_()
    opcheck(torch.ops.lnb_kernels.second_moment.default, (x, None, None))
    opcheck(torch.ops.lnb_kernels.second_moment.default, (x, weights, None))
    opcheck(torch.ops.lnb_kernels.second_moment.default, (x.detach().transpose(0, 1), None, 5))


def on_block_diagonal(s: torch.Tensor, blocks: int) -> torch.Tensor:
    """The diagonal blocks ``[blocks, size+1, size+1]`` of ``[d+1, d+1]``, each with its part of the last row and column."""
    size = (s.shape[0] - 1) // blocks
    chosen = [[*range(k * size, (k + 1) * size), s.shape[0] - 1] for k in range(blocks)]
    return torch.stack([s[index][:, index] for index in chosen])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6,), (57, 12), (3, 41, 120), (0, 6)], ids=str)
def test_blocks_are_those_on_the_diagonal(shape: tuple[int, ...], blocks: int, dtype: torch.dtype) -> None:
    values = (torch.randn(shape) + 0.5).to(dtype)
    truth = on_block_diagonal(with_ones(values).t() @ with_ones(values), blocks)
    for name, x in layouts(values):
        s = lk.second_moment(x, blocks=blocks)
        assert s.shape == truth.shape, name
        assert_close_to_reference(s, truth, on_block_diagonal(plain(values), blocks))
    weights = torch.rand(shape[:-1]).to(dtype)
    whole = lk.second_moment(values, weights)
    torch.testing.assert_close(lk.second_moment(values, weights, blocks), on_block_diagonal(whole, blocks))


def test_derivatives_of_blocks() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    for args in ((x, None), (x, weights), (x.detach(), weights), (x, weights.detach())):
        assert gradcheck(lambda *args: lk.second_moment(*args, 2), args)
        assert gradgradcheck(lambda *args: lk.second_moment(*args, 2), args)
    opcheck(torch.ops.lnb_kernels.second_moment.default, (x, weights, 2))


@pytest.mark.parametrize("blocks", [0, -2, 3])
def test_blocks_that_do_not_divide_are_named(blocks: int) -> None:
    with pytest.raises(ValueError, match=rf"second_moment: blocks={blocks} is not allowed.*the 4 features of x"):
        lk.second_moment(torch.ones(5, 4), blocks=blocks)
    with pytest.raises(TypeError, match="second_moment: blocks must be an int"):
        lk.second_moment(torch.ones(5, 4), blocks=2.0)  # type: ignore[arg-type]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"second_moment: x must be a torch.Tensor, got list"):
        lk.second_moment([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"second_moment: x has dtype torch.int64; allowed are float64"):
        lk.second_moment(torch.arange(4))
    with pytest.raises(TypeError, match=r"x has layout torch.sparse_coo"):
        lk.second_moment(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"second_moment: x is a scalar tensor"):
        lk.second_moment(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"weights has shape \(3,\), allowed is \(4,\)"):
        lk.second_moment(torch.ones(4, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"weights is on meta but x is on cpu"):
        lk.second_moment(torch.ones(4, 2), torch.ones(4, device="meta"))
