"""Negated views, as imaginary parts of conjugated tensors are: their memory holds the other sign."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzz.builders import wrapped
from op_calls import CALLS, PLACES, replaced
from support import average_
from torch import Tensor
from torch.utils._pytree import tree_leaves

import lnb_kernels as lk
from lnb_kernels.conv2d import native_kernel as conv2d_kernel
from lnb_kernels.second_moment import native_kernel as second_moment_kernel
from lnb_kernels.spd_inverse import native_kernel as spd_inverse_kernel


def negated(x: Tensor) -> Tensor:
    """A dense negated view with the values of ``x``."""
    view = torch._neg_view(-x.detach())
    assert view.is_neg()
    assert torch.equal(view, x)
    return view.requires_grad_(x.requires_grad)


def outcome(op: str, arguments: dict[str, Any]) -> list[Tensor]:
    """What a call returns, and what it wrote."""
    result = CALLS[op].function(**arguments)
    found = tree_leaves([result, [arguments[name] for name in CALLS[op].written]])
    return [value.resolve_neg() for value in found if isinstance(value, Tensor)]


@pytest.mark.parametrize(
    ("op", "name", "position"), [place for place in PLACES if place[1] != "ok"], ids=lambda value: str(value)
)
def test_a_negated_view_counts_as_its_values(backend: str, op: str, name: str, position: int | None) -> None:
    seed = torch.get_rng_state()
    expected = outcome(op, CALLS[op].arguments())
    torch.set_rng_state(seed)
    arguments = CALLS[op].arguments()
    value = arguments[name] if position is None else arguments[name][position]
    found = outcome(op, replaced(arguments, name, position, negated(value)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_imaginary_part_of_one_entry_is_dense(backend: str) -> None:
    view = torch.tensor([1 + 2j]).conj().imag
    assert lk.multi_tensor.dot([view], [torch.ones(1)]).tolist() == [-2.0]
    average_([view], [torch.ones(1)], 0.5)
    assert view.tolist() == [-0.5]


def test_a_negated_view_beside_a_tensor_without_memory_counts_as_its_values(backend: str) -> None:
    """The latter takes the call through PyTorch's dispatcher."""
    assert lk.multi_tensor.dot(
        [wrapped(torch.ones(2))], [negated(torch.tensor([2.0, 3.0]).double())]
    ).held.tolist() == [5.0]


@pytest.mark.parametrize("scope", ["layer", "neuron"])
def test_products_of_a_matvec_may_be_negated(backend: str, scope: str) -> None:
    g, a = torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = lk.pcg(lambda v: v * a, g, iterations=3, scope=scope)
    found = lk.pcg(lambda v: negated(v * a), negated(g), h0=negated(torch.zeros(3, 4)), iterations=3, scope=scope)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_native_kernels_resolve_what_they_are_handed() -> None:
    """Beneath PyTorch's dispatcher, which resolves arguments of ops."""
    x, image, matrix = torch.randn(5, 3), torch.randn(1, 2, 4, 4), 2 * torch.eye(3)
    code = [2, 2, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert torch.equal(second_moment_kernel.second_moment(negated(x)), second_moment_kernel.second_moment(x))
    ours, theirs = (conv2d_kernel.conv2d_second_moment(t, code) for t in (negated(image), image))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(spd_inverse_kernel.spd_inverse(negated(matrix))[0], 0.5 * torch.eye(3))


@pytest.mark.parametrize("op", ["multi_tensor.ema_combined_", "multi_tensor.apply_master_"])
def test_negated_views_are_written_below_a_profiler_too(backend: str, op: str) -> None:
    seed = torch.get_rng_state()
    expected = outcome(op, CALLS[op].arguments())
    torch.set_rng_state(seed)
    arguments = CALLS[op].arguments()
    name = CALLS[op].written[0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        found = outcome(op, replaced(arguments, name, 0, negated(arguments[name][0])))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
