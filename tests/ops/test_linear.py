"""``lk.linear``: what ``F.linear`` gives, bit for bit, and the second moment as the gradient of its probe."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import DTYPES, Operators, layouts
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import lnb_kernels as lk

Tensors = list[torch.Tensor]
WHOLE = (None, 1, None)  # every row, in its own dtype
SAMPLED = (torch.tensor(0.6), 2, torch.bfloat16)


def probe(d: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(d + 1, d + 1, dtype=dtype, requires_grad=True)


def probe_of_blocks(d: int, blocks: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(blocks, d // blocks + 1, d // blocks + 1, dtype=dtype, requires_grad=True)


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, grad: torch.Tensor, live: bool) -> Tensors:
    """Output and gradients of ``x``, ``weight`` and ``bias``, with a live probe or without one."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = lk.linear(leaves[0], leaves[1], leaves[2] if bias is not None else None, probe(x.shape[-1]) if live else None)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 130])
@pytest.mark.parametrize("shape", [(257,), (1, 33), (300, 257), (3, 200, 257), (2, 3, 7, 33), (64, 1), (0, 9)], ids=str)
def test_output_and_gradients_are_those_of_plain_linear(shape: tuple[int, ...], m: int, dtype: torch.dtype) -> None:
    values, w, b = (torch.randn(s).to(dtype) for s in (shape, (m, shape[-1]), (m,)))
    upstream = torch.randn(*shape[:-1], m).to(dtype)
    constant = torch.ones((), dtype=dtype).expand_as(upstream)
    transposed = upstream.mT.contiguous().mT if upstream.dim() > 1 else upstream
    weights = (w, w.t().contiguous().t())
    for (name, x), weight, bias, grad in product(layouts(values), weights, (b, None), (upstream, constant, transposed)):
        for plain, ours in zip(run(x, weight, bias, grad, False), run(x, weight, bias, grad, True), strict=True):
            assert torch.equal(plain, ours), (name, weight.stride(), bias is None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (1, 7), (40, 123), (2, 3, 5, 7), (0, 4)], ids=str)
def test_gradient_of_the_probe_is_the_second_moment(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(6, shape[-1]).to(dtype)
    p = probe(shape[-1], torch.float64 if dtype == torch.float64 else torch.float32)
    y = lk.linear(x, weight, None, p)
    (s,) = torch.autograd.grad(y, p, torch.full_like(y, float("nan")))
    assert torch.equal(s, lk.second_moment(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_probe_of_blocks_gets_their_second_moments(blocks: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 7, 6).to(dtype), torch.randn(5, 6).to(dtype)
    p = probe_of_blocks(6, blocks, torch.float64 if dtype == torch.float64 else torch.float32)
    y = lk.linear(x, weight, None, p)
    assert torch.equal(y, F.linear(x, weight))
    (s,) = torch.autograd.grad(y, p, torch.full_like(y, float("nan")))
    assert torch.equal(s, lk.second_moment(x, blocks=blocks))


def test_gradients_of_the_probe_add_up() -> None:
    """Over micro-batches, over uses of one layer, and not over the loss scale."""
    weight, p = torch.randn(4, 4, requires_grad=True), probe(4)
    x1, x2 = torch.randn(5, 4), torch.randn(3, 4)
    (1024 * lk.linear(x1, weight, None, p).sum()).backward()
    hidden = lk.linear(x2, weight, None, p)
    lk.linear(hidden, weight, None, p).sum().backward()
    assert p.grad is not None
    expected = lk.second_moment(x1) + lk.second_moment(x2) + lk.second_moment(hidden.detach())
    torch.testing.assert_close(p.grad, expected)
    assert p.grad[-1, -1].item() == 11


def test_a_probe_needs_no_memory() -> None:
    p = torch.zeros(()).expand(9, 9).requires_grad_()
    lk.linear(torch.randn(5, 8), torch.randn(2, 8), None, p).sum().backward()
    assert p.untyped_storage().nbytes() == 4
    assert p.grad is not None
    assert p.grad.is_contiguous()


def operators(*args: torch.Tensor | None, plain: bool) -> list[str]:
    with Operators() as found:
        y = F.linear(*args[:3]) if plain else lk.linear(*args)  # type: ignore[arg-type]
        if y.requires_grad:
            torch.autograd.grad(y.sum(), [t for t in args[1:3] if t is not None])
    return found.seen


def test_without_a_live_probe_there_is_no_extra_operator() -> None:
    x, weight, bias = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    expected = operators(x, weight, bias, plain=True)
    assert operators(x, weight, bias, None, plain=False) == expected
    assert operators(x, weight, bias, probe(4).requires_grad_(False), plain=False) == expected
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            bare = operators(x, weight, bias, plain=True)
            assert operators(x, weight, bias, probe(4), plain=False) == bare


@pytest.mark.parametrize("wanted", list(product((True, False), repeat=3)), ids=str)
def test_only_wanted_gradients_are_computed(wanted: tuple[bool, bool, bool]) -> None:
    x, weight, bias = (
        torch.randn(shape).requires_grad_(want) for shape, want in zip(((5, 4), (3, 4), (3,)), wanted, strict=True)
    )
    p = probe(4)
    y = lk.linear(x, weight, bias, p)
    with Operators() as found:
        y.backward(torch.ones_like(y))
    assert [t.grad is not None for t in (x, weight, bias, p)] == [*wanted, True]
    assert found.seen.count("lnb_kernels.linear_backward.default") == 1
    grads = torch.ops.lnb_kernels.linear_backward(
        torch.ones(5, 3), x.detach(), weight.detach(), [*wanted, True], *WHOLE, None
    )
    assert len(grads) == sum(wanted) + 1


def test_derivatives() -> None:
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 4), (5, 4), (5,)))
    for p in (probe(4, torch.float64), probe_of_blocks(4, 2, torch.float64)):
        assert gradcheck(lambda *args, p=p: lk.linear(*args, p), (x, weight, bias))
        assert gradgradcheck(lambda *args, p=p: lk.linear(*args, p), (x, weight, bias))


@pytest.mark.parametrize("blocks", [None, 2])
def test_the_second_moment_can_be_differentiated(blocks: int | None) -> None:
    """A penalty on ``S`` itself: its gradient is that of ``lk.second_moment``."""
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    p = probe(4, torch.float64) if blocks is None else probe_of_blocks(4, blocks, torch.float64)
    direction = torch.randn(p.shape, dtype=torch.float64)
    y = lk.linear(x, torch.randn(3, 4, dtype=torch.float64), None, p)
    (s,) = torch.autograd.grad(y.sum(), p, create_graph=True)
    (ours,) = torch.autograd.grad((s * direction).sum(), x)
    (expected,) = torch.autograd.grad((lk.second_moment(x, blocks=blocks) * direction).sum(), x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "how"),
    [  # every pair of shape and way, and of dtype and way but one: values of all dtypes and shapes are compared above
        ((4,), torch.float64, WHOLE),
        ((3, 4), torch.float32, WHOLE),
        ((2, 3, 4), torch.bfloat16, WHOLE),
        ((4,), torch.float32, SAMPLED),
        ((3, 4), torch.bfloat16, SAMPLED),
        ((2, 3, 4), torch.float64, SAMPLED),
    ],
    ids=["vector-whole", "matrix-whole", "batch-whole", "vector-sampled", "matrix-sampled", "batch-sampled"],
)
def test_opcheck(shape: tuple[int, ...], dtype: torch.dtype, how: tuple[Any, ...]) -> None:
    x, weight, bias = (torch.randn(s).to(dtype).requires_grad_() for s in (shape, (5, 4), (5,)))
    ops = torch.ops.lnb_kernels
    opcheck(ops.linear.default, (x, weight, bias, probe(4), *how))
    opcheck(ops.linear.default, (x.detach(), weight, None, probe_of_blocks(4, 2), *how))
    grad = torch.randn(*shape[:-1], 5).to(dtype)
    for mask in ([True] * 4, [False, True, False, True], [False] * 4):
        opcheck(ops.linear_backward.default, (grad, x, weight, mask, *how, None))
    column_major = weight.detach().t().contiguous().t()
    opcheck(ops.linear_backward.default, (grad, x.detach(), column_major, [True] * 4, *how, 2))


def test_bad_probes_are_named() -> None:
    x, weight = torch.randn(5, 4), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"linear: probe has shape \(5, 5, 1\), allowed is \(5, 5\)"):
        lk.linear(x, weight, None, torch.zeros(5, 5, 1, requires_grad=True))
    with pytest.raises(ValueError, match=r"linear: probe has shape \(2, 5, 5\), allowed is \(2, 3, 3\)"):
        lk.linear(x, weight, None, torch.zeros(2, 5, 5, requires_grad=True))
    with pytest.raises(ValueError, match=r"linear: probe has shape \(3, 2, 2\), allowed is \(5, 5\)"):
        lk.linear(x, weight, None, torch.zeros(3, 2, 2, requires_grad=True))
    with pytest.raises(ValueError, match=r"linear: probe has shape \(4, 4\), allowed is \(5, 5\)"):
        lk.linear(x, weight, None, probe(3))
    with pytest.raises(ValueError, match=r"linear: probe is on meta but x is on cpu"):
        lk.linear(x, weight, None, torch.zeros(5, 5, device="meta", requires_grad=True))
    with pytest.raises(TypeError, match=r"linear: probe has dtype torch.complex64"):
        lk.linear(x, weight, None, torch.zeros(5, 5, dtype=torch.complex64, requires_grad=True))


@pytest.mark.parametrize("bias", [True, False])
def test_the_input_gradient_beside_a_frozen_weight_equals_pytorchs_to_the_bit(bias: bool) -> None:
    """PyTorch multiplies rows that are not evenly apart matrix by matrix, which adds in another order."""
    x = torch.randn(7, 7, 1).transpose(0, 1).requires_grad_()
    weight, offset = torch.randn(8, 1), torch.randn(8) if bias else None
    probe = torch.zeros(2, 2, requires_grad=True)
    upstream = torch.randn(7, 7, 8)
    (found,) = torch.autograd.grad(lk.linear(x, weight, offset, probe), [x], upstream)
    (expected,) = torch.autograd.grad(F.linear(x, weight, offset), [x], upstream)
    assert torch.equal(found, expected)
