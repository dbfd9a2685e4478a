"""``two_sided_directions_`` with what is not allowed: errors name the argument, and nothing is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from two_sided_support import layer_tensors

import lnb_kernels as lk
from lnb_kernels import _native

needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))

W, B, C, MU, P, V, K = layer_tensors((), 4, 6, 2, 3, True, True)
BAD: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((W, [B], [C], [MU], [P]), TypeError, "weights must be a list, got Tensor"),
    (([W], B, [C], [MU], [P]), TypeError, "biases must be a list, got Tensor"),
    (([W], [B, B], [C], [MU], [P]), ValueError, "biases has 2 entries, allowed is one for each of weights, 1"),
    (([W.long()], [B], [C], [MU], [P]), TypeError, "layer 0: weight"),
    (([W[0]], [B], [C], [MU], [P]), ValueError, r"layer 0: weight has shape \(6,\)"),
    (([W], [None], [C], [MU], [P]), ValueError, "layer 0: bias and mean come together"),
    (([W], [B[:3]], [C], [MU], [P]), ValueError, "layer 0: bias"),
    (([W], [B], [C[:1]], [MU], [P]), ValueError, r"layer 0: inverse has shape \(1, 3, 3\)"),
    (([W], [B], [C[..., :2]], [MU], [P]), ValueError, "layer 0: inverse has shape"),
    (([W], [B], [C], [MU[:5]], [P]), ValueError, "layer 0: mean"),
    (([W, W], [B, B], [C, C], [MU, MU], [P, P[0]]), ValueError, "layer 1: root has shape"),
    (([W], [B], [C.double()], [MU], [P]), ValueError, "layer 0: inverse is torch.float64"),
    (([W], [B], [C], [MU], [P.to("meta")]), ValueError, "layer 0: root"),
    (([W, W], [B, B], [C, C], [MU, MU], [P, P]), ValueError, "weights holds one tensor twice"),
    (([W, W.clone()], [B, B], [C, C], [MU, MU], [P, P]), ValueError, "biases holds one tensor twice"),
    (([W[:1].expand(4, 6)], [B], [C], [MU], [P]), ValueError, r"weights\[0\] has entries that share memory"),
    (([W.clone().requires_grad_()], [B], [C], [MU], [P]), RuntimeError, "weights require grad"),
    (([W], [B], [C], [MU], [P], V), TypeError, "squares must be a list, got Tensor"),
    (([W], [B], [C], [MU], [P], [V, V]), ValueError, "squares has 2 entries, allowed is one for each of weights, 1"),
    (([W], [B], [C], [MU], [P], []), ValueError, "squares has 0 entries"),
    (([W], [B], [C], [MU], [P], [None]), TypeError, "layer 0: squares"),
    (([W], [B], [C], [MU], [P], [V.long()]), TypeError, "layer 0: squares"),
    (([W], [B], [C], [MU], [P], [V[:3]]), ValueError, r"layer 0: squares has shape \(3,\)"),
    (([W], [B], [C], [MU], [P], [V[:, None]]), ValueError, r"layer 0: squares has shape \(4, 1\)"),
    (([W], [B], [C], [MU], [P], [V.float()]), ValueError, "squares is torch.float32; it must be torch.float64"),
    (([W], [B], [C], [MU], [P], [V.to("meta")]), ValueError, "layer 0: squares"),
    (([W], [B], [C], [MU], [P], [V], [K]), TypeError, "bias_weights"),
    (([W], [B], [C], [MU], [P], [V], K), ValueError, r"bias_weights has shape \(\)"),
    (([W], [B], [C], [MU], [P], [V], K.expand(2)), ValueError, r"bias_weights has shape \(2,\)"),
    (([W], [B], [C], [MU], [P], [V], K[None].long()), TypeError, "bias_weights"),
    (
        ([W], [B], [C], [MU], [P], [V], K[None].float()),
        ValueError,
        "bias_weights is torch.float32; it must be torch.float64",
    ),
    (([W], [B], [C], [MU], [P], [V], K[None].to("meta")), ValueError, "bias_weights"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD)
def test_bad_arguments_are_named(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    before = W.clone(), B.clone()  # type: ignore[union-attr]
    with pytest.raises(error, match=words):
        lk.two_sided_directions_(*arguments)
    assert torch.equal(W, before[0])
    assert torch.equal(B, before[1])  # type: ignore[arg-type]


@needs_native
def test_views_of_one_memory_are_refused() -> None:
    memory = torch.randn(5, 6)
    values = [layer_tensors((), 4, 6, 2, 3, True, True) for _ in range(2)]
    lists = [list(column) for column in zip(*values, strict=True)][:6]
    lists[0] = [memory[:4], memory[1:]]
    with pytest.raises(ValueError, match=r"weights\[1\] and weights\[0\] overlap in memory"):
        lk.two_sided_directions_(*lists)
    lists[0] = [torch.randn(4, 6).double() for _ in range(2)]
    lists[1:5] = [[value.double() for value in column] for column in lists[1:5]]
    lists[5][1] = lists[0][1][:, 2]
    before = lists[0][1].clone()
    with pytest.raises(ValueError, match=r"squares\[1\] and weights\[1\] overlap in memory"):
        lk.two_sided_directions_(*lists)
    assert torch.equal(lists[0][1], before)


@needs_native
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0, r"weights\[0\] has entries but a null pointer"),
        (4, 2, r"roots\[0\] is not aligned to its dtype: its address 2"),
        (5, 4, r"squares\[0\] is not aligned to its dtype: its address 4"),
        (6, 4, r"bias_weights\[0\] is not aligned to its dtype: its address 4"),
        (3, 0, "layer 0: bias and mean come together"),
    ],
)
def test_the_module_refuses_addresses_that_would_crash(place: int, value: int, message: str) -> None:
    values = layer_tensors((), 4, 6, 2, 3, True, True)
    addresses = [tensor.data_ptr() for tensor in values if tensor is not None]
    addresses[place] = value
    with pytest.raises(ValueError, match=message):
        _native.module().two_sided_directions([addresses], [[1, 4, 6, 3, 2]], 1)


@needs_native
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 4, 6, 4, 2], "layer 0: no such blocks"),
        ([1 << 40, 1 << 20, 1 << 20, 1, 1], "weights has more entries than can be counted"),
    ],
)
def test_the_module_refuses_shapes_that_cannot_be(shape: list[int], message: str) -> None:
    addresses = [tensor.data_ptr() for tensor in layer_tensors((), 4, 6, 2, 3, True, True) if tensor is not None]
    with pytest.raises(ValueError, match=message):
        _native.module().two_sided_directions([addresses], [shape], 1)
