"""Equations for conjugate gradients, and the comparison of a solver with the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def in_order(tensors: Sequence[Tensor | None], inputs: Sequence[int]) -> list[Tensor | None]:
    """The same equation ``s, g, h0, mu, var`` with its inputs in another order; a bias stays the last column."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor[..., [*inputs, *range(len(inputs), tensor.shape[-1])]]

    s, *others = tensors
    of_rows = moved(s)
    assert of_rows is not None
    of_both = moved(of_rows.mT)
    return [of_both, *map(moved, others)]


def plain_of(tensors: Sequence[Tensor | None], options: Sequence[Any]) -> Iterator[list[Tensor]]:
    """What plain PyTorch makes of the equation, with its inputs in eight orders: directions in the order of ``tensors``."""
    assert tensors[0] is not None
    d = tensors[0].shape[-1] - 1  # beside the ones
    for turn in range(8):
        first = turn // 2 * d // 4
        inputs = [*range(first, d), *range(first)][:: -1 if turn % 2 else 1]
        h, norms = reference.pcg_moment(*in_order(tensors, inputs), *options)
        back = sorted(range(d), key=inputs.__getitem__)
        yield [h[..., [*back, *range(d, h.shape[-1])]], norms]


def check(solve: Any, tensors: dict[str, Any], iterations: int, ridge: float, scope: str, layer_dims: int = 2) -> None:
    """The solution errs at most twice as much as plain PyTorch in the same dtype.

    Of a few small matrices that error is chance, and another processor's is another: it is the largest one of eight orders of
    the inputs, which make no difference to the truth.
    """
    options = (iterations, ridge, scope, layer_dims)
    actual = solve(*tensors.values(), *options)
    truth = reference.pcg_moment(*double(tensors).values(), *options)
    for ours, right, *plain in zip(actual, truth, *plain_of(list(tensors.values()), options), strict=True):
        assert_close_to_reference(ours, right, max(plain, key=lambda each: relative_errors(each, right)[0]))
