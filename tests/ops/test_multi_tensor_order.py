"""Multi-tensor ops on lists whose dtypes alternate: every tensor meets its own partner, scale and slot of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lnb_kernels import multi_tensor

# Dtypes of a pair of lists, one entry per tensor. In the first two no kernel takes any pair; the others are mixed.
DTYPES: list[tuple[list[torch.dtype], list[torch.dtype]]] = [
    ([torch.bfloat16, torch.float32] * 2, [torch.float64] * 4),
    ([torch.float64] * 4, [torch.bfloat16, torch.float32] * 2),
    ([torch.bfloat16, torch.float32] * 2, [torch.float32] * 4),
    ([torch.bfloat16, torch.float32, torch.float16, torch.bfloat16], [torch.float64, torch.float32] * 2),
]
FACTORS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def ema_combined(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> list[Tensor]:
    return multi_tensor.ema_combined_(xs, ys, 0.5, FACTORS, 0.5)


# What each op makes of xs and ys of two entries, all of the value i in place i, as the value of every result.
OPS: dict[str, tuple[Callable[[Sequence[Tensor], Sequence[Tensor]], Any], list[float]]] = {
    "dot": (lambda xs, ys: multi_tensor.dot(xs, ys), [2.0, 8.0, 18.0, 32.0]),
    "dot of layers": (lambda xs, ys: multi_tensor.dot(xs, ys, [0, 1, 1, 3]), [2.0, 26.0, 0.0, 32.0]),
    "ema_combined_": (ema_combined, [1.5, 5.0, 10.5, 18.0]),
    "apply_": (lambda xs, ys: multi_tensor.apply_(xs, ys, FACTORS, 0.5, 0.0), [0.5, 0.0, -1.5, -4.0]),
}


@pytest.mark.parametrize("dtypes", DTYPES, ids=range(len(DTYPES)))
@pytest.mark.parametrize("op", OPS)
def test_every_tensor_keeps_its_place(
    backend: str, op: str, dtypes: tuple[list[torch.dtype], list[torch.dtype]]
) -> None:
    xs, ys = ([torch.full((2,), i + 1.0, dtype=dtype) for i, dtype in enumerate(side)] for side in dtypes)
    function, expected = OPS[op]
    result = function(xs, ys)
    found = xs if result is None else result
    if isinstance(found, list):
        found = torch.stack([tensor.double().mean() for tensor in found])
    assert found.tolist() == expected


def test_masters_keep_their_places(backend: str) -> None:
    masters = [torch.full((2,), i + 1.0) for i in range(4)]
    params = [torch.zeros(2, dtype=dtype) for dtype in (torch.bfloat16, torch.float64, torch.float16, torch.float64)]
    directions = [torch.full((2,), i + 1.0, dtype=torch.float64) for i in range(4)]
    multi_tensor.apply_master_(masters, params, directions, FACTORS, 0.5, 0.0)
    for written in (masters, params):
        assert [tensor.double().mean().item() for tensor in written] == [0.5, 0.0, -1.5, -4.0]
