"""Whether gathered second moments can be used: the kernel against plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from cusim.simulated import ORDERS, cuda_kernels_on_cpu

from lnb_kernels import multi_tensor
from lnb_kernels.multi_tensor import reference

SHAPES = [(1, 1, 5, 5), (2, 3, 4, 4), (1, 2, 130, 130), (1, 1), (7, 9, 9)]


def moments() -> list[torch.Tensor]:
    return [torch.randn(shape) for shape in SHAPES]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_each_place_that_counts(value: float, order: str) -> None:
    with cuda_kernels_on_cpu() as simulated:
        simulated.set(order)
        for layer, shape in enumerate(SHAPES):
            n = shape[-1]
            for row, column in {(n - 1, 0), (n - 1, n - 1), (0, 0), (n // 2, n // 2), (0, n - 1), (n // 2, n // 3)}:
                given = moments()
                given[layer].view(-1, n, n)[-1, row, column] = value
                assert torch.equal(multi_tensor.moment_flags(given), reference.moment_flags(given)), (
                    layer,
                    row,
                    column,
                )


def test_one_launch_for_a_table_of_layers() -> None:
    with cuda_kernels_on_cpu() as simulated:
        flags = multi_tensor.moment_flags([torch.ones(2, 2)] * 1025)
        assert simulated.launches == ["moment_flags"] * 2
        assert flags.shape == (2, 1025)
        assert bool(flags.all())
        simulated.set()
        multi_tensor.moment_flags([torch.ones(3, 2, 2), torch.ones(4, 4)])
        assert simulated.traffic[0] == 4 * 3 * 2 * 2 + 4 * 2 * 4


def test_what_the_kernel_does_not_take_goes_to_the_reference() -> None:
    wide, turned = torch.full((3, 3), math.nan, dtype=torch.float64), torch.ones(2, 3, 3).transpose(0, 1).mT
    with cuda_kernels_on_cpu() as simulated:
        assert multi_tensor.moment_flags([wide, torch.eye(2, dtype=torch.float64)]).tolist() == [[False, True]] * 2
        assert multi_tensor.moment_flags([turned[:, :, :2].mT[..., :2, :2].clone().mT]).tolist() == [[True]] * 2
        assert simulated.launches == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"counts": [0]}, "0 matrices of side 2"),
        ({"sides": [0]}, "1 matrices of side 0"),
        ({"moments": [0]}, r"moments\[0\] has entries but a null pointer"),
        ({"squares": 0}, "null pointer"),
        ({"counts": []}, "a count and a side each"),
    ],
)
def test_bindings_refuse_what_would_crash(changed: dict[str, object], message: str) -> None:
    memory = torch.ones(2, 2)
    given = {"moments": [memory.data_ptr()], "counts": [1], "sides": [2], "sums": 8, "squares": 8, "where": (0, 0)}
    with cuda_kernels_on_cpu() as simulated:
        with pytest.raises(ValueError, match=message):
            simulated.module.moment_flags(*(given | changed).values())
        simulated.set(fail_launch=0)
        with pytest.raises(RuntimeError, match="moment_flags failed"):
            multi_tensor.moment_flags([memory])


@pytest.mark.parametrize("bad", [[], [torch.ones(3)], [torch.ones(2, 3)], [torch.ones(0, 0)]])
def test_arguments(bad: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="moments"):
        multi_tensor.moment_flags(bad)
