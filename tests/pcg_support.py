"""Equations for conjugate gradients, and the comparison of a solver with the reference in float64."""

from __future__ import annotations

from typing import Any

import torch
from support import assert_close_to_reference

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


def check(solve: Any, tensors: dict[str, Any], iterations: int, ridge: float, scope: str, layer_dims: int = 2) -> None:
    options = (iterations, ridge, scope, layer_dims)
    actual = solve(*tensors.values(), *options)
    truth = reference.pcg_moment(*double(tensors).values(), *options)
    plain = reference.pcg_moment(*tensors.values(), *options)
    for ours, right, torchs in zip(actual, truth, plain, strict=True):
        assert_close_to_reference(ours, right, torchs)
