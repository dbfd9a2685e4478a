"""``lk.newton_schulz`` and ``lk.newton_schulz_root`` against the same polynomial of the singular values in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flops import count_flops
from support import assert_close_to_reference
from torch.library import opcheck
from triton_support import DEVICE

import lnb_kernels as lk
from lnb_kernels import _native
from lnb_kernels.newton_schulz import native_kernel, reference
from lnb_kernels.newton_schulz import triton_kernel as kernel

QUINTIC = [3.4445, -4.7750, 2.0315]


def matrices(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, device=DEVICE)
    return (x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)).to(dtype)


def polynomial(x: torch.Tensor, steps: int) -> torch.Tensor:
    u, sigma, vh = torch.linalg.svd(x.double(), full_matrices=False)
    a, b, c = QUINTIC
    for _ in range(steps):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return u @ (sigma.unsqueeze(-1) * vh)


@pytest.mark.parametrize("shape", [(7, 7), (3, 5, 9), (2, 2, 12, 20)], ids=str)
def test_is_a_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    x = matrices(*shape).double()
    torch.testing.assert_close(lk.newton_schulz(x, QUINTIC, 3), polynomial(x, 3))
    root = lk.newton_schulz_root(x @ x.mT, QUINTIC, 3)
    torch.testing.assert_close(root @ x, polynomial(x, 3))
    torch.testing.assert_close(lk.newton_schulz(x, QUINTIC, 0), x)
    assert lk.newton_schulz(x[..., :0], QUINTIC, 2).shape == (*shape[:-1], 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 7, 7), (2, 33, 50)], ids=str)
def test_kernels_err_as_plain_products_do(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "symmetric_products_pay", lambda size: True)
    x = matrices(*shape, dtype=dtype)
    truth = reference.newton_schulz(x.double(), QUINTIC, 2)
    assert_close_to_reference(kernel.newton_schulz(x, QUINTIC, 2), truth, reference.newton_schulz(x, QUINTIC, 2))
    power = x @ x.mT
    power = (power + power.mT) / 2
    truth = reference.newton_schulz_root(power.double(), QUINTIC, 3)
    actual = kernel.newton_schulz_root(power, QUINTIC, 3)
    assert_close_to_reference(actual, truth, reference.newton_schulz_root(power, QUINTIC, 3))
    assert torch.equal(actual, actual.mT)


@pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 7, 9), (5, 16, 16), (2, 33, 40), (2, 144, 200)], ids=str)
def test_the_native_root_errs_as_plain_products_do(shape: tuple[int, ...], threads: int) -> None:
    x = torch.randn(shape)
    power = x @ x.mT
    power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = native_kernel.newton_schulz_root(power, QUINTIC, 5)
    finally:
        torch.set_num_threads(before)
    truth = reference.newton_schulz_root(power.double(), QUINTIC, 5)
    assert_close_to_reference(actual, truth, reference.newton_schulz_root(power, QUINTIC, 5))
    assert torch.equal(actual, actual.mT)
    assert torch.equal(native_kernel.newton_schulz_root(power.mT.contiguous().mT, QUINTIC, 5), actual)


def test_small_matrices_take_plain_products() -> None:
    x = matrices(1, 20, 30)
    assert torch.equal(kernel.newton_schulz(x, QUINTIC, 2), reference.newton_schulz(x, QUINTIC, 2))


def test_opcheck() -> None:
    x = matrices(2, 5, 8)
    opcheck(torch.ops.lnb_kernels.newton_schulz, (x, QUINTIC, 2))
    opcheck(torch.ops.lnb_kernels.newton_schulz, (x, QUINTIC, 0))
    opcheck(torch.ops.lnb_kernels.newton_schulz_root, (x @ x.mT, QUINTIC, 2))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([[1.0]], QUINTIC, 1), TypeError, "x must be a torch.Tensor"),
        ((torch.ones(3), QUINTIC, 1), ValueError, r"x has shape \(3,\)"),
        ((torch.ones(3, 3), [1.0], 1), ValueError, "coefficients"),
        ((torch.ones(3, 3), QUINTIC, -1), ValueError, "steps=-1"),
        ((torch.ones(3, 3), QUINTIC, 1.5), TypeError, "steps must be an int"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        lk.newton_schulz(*arguments)


def test_the_root_of_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"power has shape \(2, 3\)"):
        lk.newton_schulz_root(torch.ones(2, 3), QUINTIC, 1)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_flops_are_counted(steps: int) -> None:
    """``FlopCounterMode`` sees the op as a whole; its formula is that of the reference's products."""
    quintic, x = [3.4445, -4.7750, 2.0315], torch.randn(2, 5, 7)
    for op, plain, argument in (
        (lk.newton_schulz, reference.newton_schulz, x),
        (lk.newton_schulz_root, reference.newton_schulz_root, x @ x.mT),
    ):
        with count_flops() as ours:
            op(argument, quintic, steps)
        with count_flops() as theirs:
            plain(argument, quintic, steps)
        assert ours.get_total_flops() == theirs.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_without_the_square(dtype: torch.dtype) -> None:
    """PyTorch's one call for ``b A + c A^2`` forgets ``b`` where ``c`` is 0, in bfloat16 on CPUs."""
    power = (torch.eye(40) / 4 + 0.01).to(dtype)
    expected = torch.eye(40)
    a = power.float()
    for _ in range(2):
        factor = 1.5 * torch.eye(40) - 0.5 * a
        expected, a = factor @ expected, factor @ a @ factor
    torch.testing.assert_close(
        lk.newton_schulz_root(power, (1.5, -0.5, 0.0), 2).float(), expected, rtol=0.05, atol=0.02
    )
