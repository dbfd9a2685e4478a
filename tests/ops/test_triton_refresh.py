"""The refresh by Triton, interpreted, against float64: all that the CUDA kernels are held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton_sanitizer
from cusim.refresh_support import NOISE_LEVEL, SHAPES, Shape, copy, layer, plain, written
from support import assert_close_to_reference
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton_support import DEVICE

import lnb_kernels as lk
from lnb.statistics.factored import factorize
from lnb.statistics.orthogonalize import QUINTIC, STEPS, inverse_root
from lnb_kernels._backend import KernelUnavailable
from lnb_kernels.multi_tensor import triton_kernel as triton_flags
from lnb_kernels.multi_tensor.reference import moment_flags as flags_by_reference
from lnb_kernels.refresh import AveragedGradient, InputMetric, refreshers, triton_inputs, triton_kernel, triton_outputs

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


def test_refresh_of_layers_of_many_shapes() -> None:
    """One has more blocks of inputs than a program takes, one more pivots than are swept together."""
    shapes = (
        SHAPES[0],
        Shape(2, 1, 1, 2, 1, shared=True),
        Shape(1, 1, 17, 1, 20, bias=False, steps=0),
        Shape(1, 9, 2, 2, 3, decay=0.0, relative=False),
    )
    layers = [layer(shape, seed) for seed, shape in enumerate(shapes)]
    for of, result in zip(layers, run(layers), strict=True):
        truth, same = plain(of, torch.float64), plain(of, torch.float32)
        assert result.keys() == truth.keys()
        for name, value in result.items():
            try:
                assert_close_to_reference(value, truth[name], same[name])
            except AssertionError as error:
                raise AssertionError(f"{name} of {tuple(of.inverse.shape)}: {error}") from None
            if name in ("inverse", "output_moment", "root"):
                assert torch.equal(value, value.mT), name


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 5), (torch.bfloat16, 8)])  # 8: whole accesses of 16 bytes
def test_gradients_are_averaged_where_they_are_read(dtype: torch.dtype, width: int) -> None:
    """Two layers of one input: the second moment is averaged once, and each has neurons of its own."""
    of = layer(Shape(1, 1, width, 1, 8))
    [first] = of.outputs
    assert first.average is not None
    share = torch.tensor(1.75, dtype=torch.float64 if dtype == torch.float32 else torch.float32)

    def averaged(like: Any) -> AveragedGradient:
        return AveragedGradient(torch.randn_like(like).to(dtype), torch.randn_like(like), share, 0.9, 0.1)

    before = first.average
    second = replace(
        first, average=before.clone(), weight=averaged(first.weight), bias=averaged(first.bias), root=first.root.clone()
    )
    third = replace(second, weight=averaged(first.weight), average=before.clone(), root=first.root.clone())
    own = replace(copy(of), outputs=(second, third))
    triton_kernel.refresh_metrics([own], None, NOISE_LEVEL, QUINTIC, STEPS)
    for outputs in (second, third):
        formed = replace(first, weight=outputs.weight.tensor(), bias=outputs.bias.tensor())
        right = plain(replace(of, outputs=(formed,)), torch.float64)
        assert float(own.steps) == float(right["steps"]) == 4
        torch.testing.assert_close(own.inverse.double(), right["inverse"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs.average.double(), right["output_moment"], rtol=1e-5, atol=1e-5)
        near = 1e-3 * float(right["root"].abs().max())  # a root magnifies what rounding does
        torch.testing.assert_close(outputs.root.double(), right["root"], rtol=1e-3, atol=near)


def test_roots_do_not_depend_on_the_size_of_gradients() -> None:
    of = layer(Shape(1, 3, 3, 1, 4, decay=0.0))
    [outputs] = of.outputs
    assert isinstance(outputs.weight, Tensor)
    assert isinstance(outputs.bias, Tensor)
    scaled = [
        replace(outputs, weight=outputs.weight * scale, bias=outputs.bias * scale) for scale in (2.0**-120, 2.0**100)
    ]
    layers = [of, *(replace(of, outputs=(own,)) for own in scaled)]
    expected, *found = run(layers)
    assert all(torch.equal(result["root"], expected["root"]) for result in found)


@pytest.mark.parametrize("why", ["no rows", "not squarable", "not ok"])
def test_layers_that_may_not_change_are_not_written(why: str) -> None:
    kept, changed = layer(Shape(1, 1, 3, 1, 2), 1), layer(Shape(1, 1, 2, 1, 2), 2)
    ok = None
    if why == "no rows":
        kept = replace(kept, gathered=torch.zeros_like(kept.gathered))
    elif why == "not squarable":
        kept = replace(kept, squarable=torch.tensor(False))
        changed = replace(changed, squarable=torch.tensor(True))
    else:
        ok = torch.tensor(False)
        changed = replace(changed, gathered=changed.gathered * torch.nan)
    before = written(copy(kept))
    still, moved = run([kept, changed], ok)
    for name, value in still.items():
        assert torch.equal(value.nan_to_num(9.0), before[name].nan_to_num(9.0)), name
    assert bool(moved["root"].isfinite().all()) == (why != "not ok")


def test_covariances_without_an_inverse_and_moments_without_a_root() -> None:
    """One that a larger ridge makes positive definite, one whose diagonal has to do, and inputs that are all zero."""
    side = 6
    layers, expected = [], []
    for entries in (0.5, -3.0, 0.0):
        product = torch.eye(side) if entries else torch.zeros(side, side)
        product[0, 1] = product[1, 0] = 1.5 * entries
        gathered = torch.zeros(1, 1, side + 1, side + 1)
        gathered[..., :side, :side] = product
        gathered[..., -1, -1] = 1
        of = layer(Shape(1, 1, side, 1, 2, bias=False, decay=0.0, relative=False))
        layers.append(replace(of, gathered=gathered, ridge=0.0 if entries == 0.5 else 1e-3))
        expected.append(factorize(gathered, layers[-1].ridge, False, inverse=True).matrix)
    for found, right in zip(run(layers), expected, strict=True):
        torch.testing.assert_close(found["inverse"], right, rtol=1e-5, atol=1e-5)
        assert bool(found["root"].isfinite().all())
    of = layer(Shape(1, 1, 3, 2, 4, decay=0.9))
    [outputs] = of.outputs
    average = torch.zeros_like(outputs.average)
    average[0, 0] = torch.eye(4) * 10
    average[0, 0, 0, 1] = average[0, 0, 1, 0] = 1000  # far from positive semi-definite
    nothing = replace(outputs, weight=outputs.weight * 0, bias=outputs.bias * 0, average=average)
    [found] = run([replace(of, outputs=(nothing,))])
    torch.testing.assert_close(found["output_moment"], average * 0.9)
    torch.testing.assert_close(found["root"], inverse_root(average * 0.9))
    assert torch.equal(found["root"][0, 0].count_nonzero(), torch.tensor(4))
    assert bool((found["root"][0, 1].diagonal() > 1).all())  # of a zero moment


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
