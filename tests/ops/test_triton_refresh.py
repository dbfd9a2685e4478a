"""The refresh by Triton, interpreted, against float64: all that the CUDA kernels are held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton_sanitizer
from cusim.refresh_contract import Contract, Run, averaged
from cusim.refresh_support import NOISE_LEVEL, SHAPES, Shape, copy, layer, plain, written
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton_support import DEVICE

import lnb_kernels as lk
from lnb.statistics.orthogonalize import QUINTIC, STEPS
from lnb_kernels._backend import KernelUnavailable
from lnb_kernels.multi_tensor import triton_kernel as triton_flags
from lnb_kernels.multi_tensor.reference import moment_flags as flags_by_reference
from lnb_kernels.refresh import InputMetric, refreshers, triton_inputs, triton_kernel, triton_outputs

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu", reason="tensors of these tests are on the CPU; make gpu has the others"
)


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    with triton_sanitizer.through_tables(triton_kernel, triton_flags):
        yield


def run(layers: list[InputMetric], ok: Tensor | None = None) -> list[dict[str, Tensor]]:
    own = [copy(of) for of in layers]
    triton_kernel.refresh_metrics(own, ok, NOISE_LEVEL, QUINTIC, STEPS)
    return [written(of) for of in own]


class TestContract(Contract):
    """One layer has more blocks of inputs than a program takes, one more pivots than are swept together."""

    shapes = (
        SHAPES[0],
        Shape(2, 1, 1, 2, 1, shared=True),
        Shape(1, 1, 17, 1, 20, bias=False, steps=0),
        Shape(1, 9, 2, 2, 3, decay=0.0, relative=False),
    )
    gradients = ((torch.float32, 5), (torch.bfloat16, 8))  # 8: whole accesses of 16 bytes

    @pytest.fixture
    def run(self) -> Run:
        return run


def test_layers_of_one_input_share_its_average() -> None:
    """The second moment is averaged once, and each layer has neurons of its own."""
    of = layer(Shape(1, 1, 5, 1, 8))
    [first] = of.outputs
    assert first.average is not None
    share = torch.tensor(1.75, dtype=torch.float64)
    layers = [
        replace(
            first,
            average=first.average.clone(),
            weight=averaged(first.weight, torch.float32, share),
            bias=averaged(first.bias, torch.float32, share),
            root=first.root.clone(),
        )
        for _ in range(2)
    ]
    own = replace(copy(of), outputs=tuple(layers))
    triton_kernel.refresh_metrics([own], None, NOISE_LEVEL, QUINTIC, STEPS)
    for outputs in layers:
        formed = replace(first, weight=outputs.weight.tensor(), bias=outputs.bias.tensor())
        right = plain(replace(of, outputs=(formed,)), torch.float64)
        assert float(own.steps) == float(right["steps"]) == 4
        torch.testing.assert_close(own.inverse.double(), right["inverse"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs.average.double(), right["output_moment"], rtol=1e-5, atol=1e-5)
        near = 1e-3 * float(right["root"].abs().max())  # a root magnifies what rounding does
        torch.testing.assert_close(outputs.root.double(), right["root"], rtol=1e-3, atol=near)


def test_moments_that_are_not_finite_are_told() -> None:
    shapes = [(1, 1, 5, 5), (2, 3, 4, 4), (1, 2, 300, 300), (1, 1)]
    cases = [(i, place) for i in (1, 2) for place in ((-1, 0), (-1, -1), (0, 0), (0, -1))]
    for i, (row, column) in cases:
        given = [torch.ones(shape) for shape in shapes]
        given[i].view(-1, shapes[i][-1], shapes[i][-1])[-1, row, column] = torch.inf if row else torch.nan
        assert torch.equal(triton_flags.moment_flags(given), flags_by_reference(given)), (i, row, column)


@pytest.mark.parametrize("failing", [triton_inputs.metric_kernel, triton_outputs.root_kernel])
def test_nothing_is_written_where_a_later_kernel_does_not_compile(
    failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes over averages everything itself."""
    of = layer(SHAPES[0])
    before = written(copy(of))

    def fails(*_: Any, **__: Any) -> None:
        raise InterpreterError("a test's kernel does not compile")

    monkeypatch.setattr(failing, "warmup", fails, raising=False)
    own = copy(of)
    lk.set_backend("triton")
    try:
        [kernels] = refreshers(of.gathered)
        with pytest.raises(KernelUnavailable, match="refresh_metrics does not compile"):
            kernels.refresh([own], None, NOISE_LEVEL, QUINTIC, STEPS)
    finally:
        lk.set_backend("auto")
    for name, value in written(own).items():
        assert torch.equal(value.nan_to_num(9.0), before[name].nan_to_num(9.0)), name
