"""Equations for conjugate gradients, and the comparison of a solver with the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from support import assert_close_to_reference, relative_errors
from torch import Tensor

from lnb_kernels.pcg import reference


def equation(batch: tuple[int, ...], m: int, d: int, bias: bool, start: bool, arrow: bool) -> dict[str, Any]:
    rows = torch.randn(*batch, 2 * d + 40, d) + 0.3
    rows = torch.cat((rows, torch.ones(*rows.shape[:-1], 1)), -1)
    s = rows.mT @ rows
    count = s[..., -1:, -1]
    mu = s[..., -1, :-1] / count
    columns = d + bias
    return {
        "s": s,
        "g": torch.randn(*batch, m, columns),
        "h0": torch.randn(*batch, m, columns) if start else None,
        "mu": mu if arrow else None,
        "var": s.diagonal(dim1=-2, dim2=-1)[..., :-1] / count - mu**2 if arrow else None,
    }


def double(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else value.double() for name, value in tensors.items()}


def in_orders(tensors: dict[str, Any], orders: int) -> Iterator[tuple[list[Tensor | None], list[int]]]:
    """The equation as it is, then with its inputs in up to seven other orders, and the columns of a direction that bring it
    back; a bias stays last."""
    d, columns = tensors["s"].shape[-1] - 1, tensors["g"].shape[-1]  # beside the ones
    yield list(tensors.values()), list(range(columns))  # in the memory that a test has chosen
    for turn in range(1, orders):
        first = turn // 2 * d // 4
        inputs = [*range(first, d), *range(first)][:: -1 if turn % 2 else 1]
        moved = {
            name: None if each is None else each[..., [*inputs, *range(d, each.shape[-1])]].contiguous()
            for name, each in (tensors | {"s": tensors["s"][..., [*inputs, d], :]}).items()
        }
        yield list(moved.values()), [*sorted(range(d), key=inputs.__getitem__), *range(d, columns)]


def check(
    solve: Any,
    tensors: dict[str, Any],
    iterations: int,
    ridge: float,
    scope: str,
    layer_dims: int = 2,
    orders: int = 1,
) -> None:
    """The solution errs at most twice as much as plain PyTorch in the same dtype.

    Of a few small matrices, errors are chance of the order of sums, and another processor's are others. The order of the inputs
    makes no difference to the truth: what is compared is the largest error of ``orders`` of them, on both sides.
    """
    options = (iterations, ridge, scope, layer_dims)
    truth = reference.pcg_moment(*double(tensors).values(), *options)

    def worst(solver: Any) -> list[Tensor]:
        found = []
        for turned, back in in_orders(tensors, orders):
            h, norms = solver(*turned, *options)
            found.append((h[..., back], norms))
        return [
            max(each, key=lambda one: relative_errors(one, right)[0])
            for each, right in zip(zip(*found, strict=True), truth, strict=True)
        ]

    for ours, right, plain in zip(worst(solve), truth, worst(reference.pcg_moment), strict=True):
        assert_close_to_reference(ours, right, plain)
