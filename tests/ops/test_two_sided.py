"""``two_sided_directions_``: the native kernel on every instruction set, against float64; the op itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Operators, assert_close_to_reference
from torch import Tensor
from two_sided_support import layer_tensors, row_squares

import lnb_kernels as lk
from lnb_kernels import _native
from lnb_kernels.two_sided import native_kernel, reference
from lnb_kernels.two_sided.reference import LayerTensors

needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


def double(values: LayerTensors) -> Any:
    return tuple(None if value is None else value.double() for value in values)


Backend: TypeAlias = Callable[[list[LayerTensors]], Tensor]
Step: TypeAlias = tuple[Tensor, Tensor | None]  # of the weight and the bias


def solved(backend: Backend, layers: list[LayerTensors]) -> tuple[list[Step], Tensor]:
    """Directions of copies of the layers, and the four sums."""
    copies = [tuple(None if value is None else value.clone() for value in values) for values in layers]
    sums = backend(copies)  # type: ignore[arg-type]
    return [(values[0], values[1]) for values in copies], sums  # type: ignore[misc]


def check(layers: list[LayerTensors]) -> None:
    """At most twice the error of plain PyTorch in float32."""
    ours, sums = solved(native_kernel.two_sided_directions_, layers)
    plain, plain_sums = solved(reference.two_sided_directions_, layers)
    exact, exact_sums = solved(reference.two_sided_directions_, [double(values) for values in layers])
    assert sums.shape == exact_sums.shape
    if layers:
        assert sums.dtype == torch.float64
        for found, truth, usual in zip(sums.mT, exact_sums.mT, plain_sums.mT, strict=True):
            assert_close_to_reference(found.float(), truth, usual.float())
        torch.testing.assert_close(sums[:, 3], exact_sums[:, 3], rtol=1e-13, atol=0)  # of what was given: exact
    for found, usual, truth in zip(ours, plain, exact, strict=True):
        for of_ours, of_plain, of_exact in zip(found, usual, truth, strict=True):
            if of_ours is not None and of_plain is not None and of_exact is not None:
                assert_close_to_reference(of_ours, of_exact, of_plain)


SHAPES = [  # rows, inputs, blocks of outputs, blocks of inputs
    (1, 1, 1, 1),
    (7, 27, 7, 27),
    (10, 123, 10, 41),
    (16, 144, 16, 144),
    (129, 96, 129, 48),
    (200, 112, 100, 16),
    (64, 507, 32, 169),
    (11, 256, 11, 256),
]


@needs_native
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("squares", [True, False])
def test_error_is_that_of_plain_float32(isa: str, bias: bool, squares: bool) -> None:
    check([layer_tensors((2,), m, d, side, size, bias, squares) for m, d, side, size in SHAPES])


@needs_native
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.integers(1, 40), st.integers(1, 3), st.integers(1, 60), st.integers(1, 3),
            st.booleans(), st.booleans(),
        ),
        max_size=5,
    ),
)  # fmt: skip
def test_any_shapes_together(layers: list[tuple[int, int, int, int, int, bool, bool]]) -> None:
    check([layer_tensors((n, 1), side * a, size * b, side, size, *kinds) for n, side, a, size, b, *kinds in layers])


@needs_native
def test_layout_threads_and_order_change_nothing() -> None:
    """Strided inputs are what they look like; results do not depend on the number of threads or on the other layers."""
    layers = [
        layer_tensors((), 130, 64, 65, 32, True, True),
        layer_tensors((), 9, 20, 9, 20, False),
        layer_tensors((3,), 20, 48, 10, 24, True, True),
    ]
    alone = [solved(native_kernel.two_sided_directions_, [values]) for values in layers]
    expected_sums = torch.cat([sums for _, sums in reversed(alone)])
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        # The constants are strided; what is written is as it was.
        strided: list[LayerTensors] = [
            (weight.clone(), None if bias is None else bias.clone(), *map(with_gaps, constants))
            for weight, bias, *constants in reversed(layers)
        ]  # type: ignore[misc]
        torch.set_num_threads(count)
        try:
            sums = native_kernel.two_sided_directions_(strided)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(sums, expected_sums)
        for (weight, bias, *_), ([expected], _) in zip(reversed(strided), alone, strict=True):
            assert same((weight, bias), expected)


def with_gaps(value: Tensor | None) -> Tensor | None:
    return value if value is None or value.dim() == 0 else value.repeat_interleave(2, -1)[..., ::2]


def same(step: Step, other: Step) -> bool:
    return all(a is b or torch.equal(a, b) for a, b in zip(step, other, strict=True) if a is not None and b is not None)


@needs_native
def test_nothing_beyond_the_layers_is_written() -> None:
    """Weights and biases lie between guards, and their constants keep their values."""
    guard = 64
    made: list[Tensor] = []

    def guarded(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        edge = value.new_full((guard,), torch.nan)
        made.append(torch.cat([edge, value.flatten(), edge]))
        return made[-1][guard:-guard].view(value.shape)

    layers = [layer_tensors((2,), m, d, a, b, True, True) for m, d, a, b in SHAPES]
    placed: list[LayerTensors] = [tuple(map(guarded, values)) for values in layers]  # type: ignore[misc]
    native_kernel.two_sided_directions_(placed)
    for (weight, bias, *constants), (_, _, *before) in zip(placed, layers, strict=True):
        assert weight.isfinite().all()
        assert bias is not None
        assert bias.isfinite().all()
        for constant, original in zip(constants, before, strict=True):
            assert constant is not None
            assert original is not None
            assert torch.equal(constant, original)
    for memory in made:
        assert bool(memory[:guard].isnan().all())
        assert bool(memory[-guard:].isnan().all())


BACKENDS = [reference.two_sided_directions_, pytest.param(native_kernel.two_sided_directions_, marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_descent_stand_still_and_nan_stays(backend: Backend) -> None:
    weight, bias, inverse, mean, root, *_ = layer_tensors((), 6, 8, 6, 8, True)
    assert bias is not None
    assert mean is not None
    weight[1], bias[1] = 0, 0
    root = torch.eye(6).reshape(1, 6, 6)
    [(step, step_bias)], sums = solved(backend, [(weight, bias, inverse, mean, root, None, None)])
    assert step_bias is not None
    assert bool((step[1] == 0).all() and (step_bias[1] == 0).all())
    assert bool(step.isfinite().all() and (step[2:] != 0).all())
    assert bool(sums.isfinite().all())
    weight[2, 3] = torch.nan
    [(step, step_bias)], sums = solved(backend, [(weight, bias, inverse, mean, root, None, None)])
    assert step_bias is not None
    assert bool(step[2].isnan().all() and step_bias[2].isnan().all())
    assert bool(sums.isnan().all())
    upwards = (weight[:2], None, -inverse, None, torch.eye(2).reshape(1, 2, 2), None, None)
    [(step, _)], sums = solved(backend, [upwards])
    assert bool((step == 0).all() and (sums[:, :3] == 0).all())
    torch.testing.assert_close(sums[0, 3], row_squares(weight[:2], None).sum(), check_dtype=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("squares", [True, False])
def test_sums_are_those_of_the_directions(backend: Backend, squares: bool) -> None:
    """``<H, W> + <h, b>``, ``||H||^2``, that without agreement, ``||W||^2 + w ||b||^2``, in the order of the layers."""
    layers = [layer_tensors((2, 3), 10, 12, 5, 6, True, squares), layer_tensors((), 7, 9, 7, 9, False, squares)]
    steps, sums = solved(backend, layers)
    free, _ = solved(backend, [(*values[:5], None, None) for values in layers])
    expected = []
    for (step, step_bias), (of_free, _), (weight, bias, *_, counted) in zip(steps, free, layers, strict=True):
        product = (step.double() * weight.double()).sum((-2, -1))
        if bias is not None and step_bias is not None:
            product = product + (step_bias.double() * bias.double()).sum((-2, -1))
        norm, of_free = (h.double().square().sum((-2, -1)) for h in (step, of_free))
        scaled = None if bias is None else bias.double() * (1.0 if counted is None else counted.sqrt())
        gradient = row_squares(weight, scaled).sum(-1)
        expected.append(torch.stack([product, norm, of_free, gradient], -1).reshape(-1, 4))
    torch.testing.assert_close(sums, torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert bool((sums[:, 1] < 0.9 * sums[:, 2]).all()) == squares


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_shrink_by_the_agreement_of_their_gradients(backend: Backend, scale: float, bias: bool) -> None:
    """Here from numbers of Python, whatever the size of the gradients."""
    *given, squares, counted = layer_tensors((2,), 12, 10, 6, 5, bias, True)
    assert squares is not None
    assert counted is not None
    for value in given[:2]:
        if value is not None:
            value.mul_(scale)
    squares.mul_(scale**2)
    [(step, step_bias)], _ = solved(backend, [(*given, squares, counted)])  # type: ignore[list-item]
    [(free, free_bias)], _ = solved(backend, [(*given, None, None)])  # type: ignore[list-item]
    factors = []
    for i in range(24):
        entries = given[0].reshape(24, 10)[i].tolist()
        if given[1] is not None:
            entries.append(math.sqrt(counted.item()) * given[1].flatten()[i].item())
        factors.append(min(1.0, math.hypot(*entries) / math.sqrt(squares.flatten()[i].item())))
    assert min(factors) < 0.1
    assert max(factors) == 1
    of_rows = torch.tensor(factors).view(2, 12, 1)
    torch.testing.assert_close(step, of_rows * free, rtol=1e-5, atol=1e-6)
    if step_bias is not None and free_bias is not None:
        torch.testing.assert_close(step_bias, of_rows * free_bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_mean_square_stand_still(backend: Backend) -> None:
    *given, squares, _ = layer_tensors((), 6, 8, 3, 4, True, True)
    assert squares is not None
    squares[:4] = torch.tensor([0.0, -1.0, torch.nan, torch.inf])
    [(step, step_bias)], sums = solved(backend, [(*given, squares, None)])  # type: ignore[list-item]
    assert step_bias is not None
    assert bool((step[:4] == 0).all() and (step_bias[:4] == 0).all())
    assert bool((step[4:] != 0).all() and (step_bias[4:] != 0).all())
    assert bool(sums.isfinite().all())


@needs_native
@pytest.mark.parametrize("squares", [True, False])
def test_what_the_kernel_does_not_take_goes_by_the_reference(squares: bool) -> None:
    """Wide blocks and float64, alone and beside layers for the kernel, in any order."""
    wide, doubles = (
        layer_tensors((2,), 3, 300, 3, 300, True, squares),
        double(layer_tensors((), 4, 6, 4, 3, True, squares)),
    )
    layers = [
        wide,
        layer_tensors((3,), 8, 10, 4, 5, False, squares),
        doubles,
        layer_tensors((), 5, 12, 5, 12, True, squares),
    ]
    backends = [reference.two_sided_directions_, native_kernel.two_sided_directions_] * 2
    alone = [solved(backend, [values]) for backend, values in zip(backends, layers, strict=True)]
    steps, sums = solved(native_kernel.two_sided_directions_, layers)
    assert sums.dtype == torch.float64
    assert torch.equal(sums, torch.cat([own for _, own in alone]))
    for step, ([expected], _) in zip(steps, alone, strict=True):
        assert same(step, expected)


@needs_native
def test_written_tensors_with_gaps_are_written() -> None:
    weight, bias, *constants = layer_tensors((), 6, 10, 3, 5, True)
    [(step, step_bias)], _ = solved(reference.two_sided_directions_, [(weight, bias, *constants)])  # type: ignore[arg-type]
    strided = with_gaps(weight), with_gaps(bias)
    native_kernel.two_sided_directions_([(*strided, *constants)])  # type: ignore[list-item]
    assert same(strided, (step, step_bias))  # type: ignore[arg-type]


def test_layers_of_equal_shapes_are_solved_together_on_accelerators() -> None:
    """The same directions and sums, in calls that do not grow with the layers."""
    kinds = [((1,), 6, 8, 3, 4, True, True), ((2,), 4, 8, 4, 8, False, True), ((1,), 5, 7, 5, 7, True, False)]
    layers = [layer_tensors(*kind) for kind in (*kinds[:2], *kinds, kinds[0])]
    apart = [tuple(None if t is None else t.clone() for t in values) for values in layers]
    sums = reference.by_kind_(layers)
    wanted = torch.cat([reference.two_sided_direction_(*values) for values in apart])
    torch.testing.assert_close(sums, wanted, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(layers, apart, strict=True):
        for place in (0, 1):
            torch.testing.assert_close(mine[place], theirs[place], rtol=1e-5, atol=1e-6)
    counts = []
    for count in (4, 12):
        alike = [layer_tensors(*kinds[0]) for _ in range(count)]
        with Operators() as found:
            reference.by_kind_(alike)
        counts.append(len(found.launched))
    assert counts[0] == counts[1]


@needs_native
def test_the_op_writes_to_its_arguments() -> None:
    values = layer_tensors((), 12, 10, 4, 5, True, True)
    [(step, step_bias)], expected = solved(native_kernel.two_sided_directions_, [values])
    weight, bias, *_ = values
    assert bias is not None
    assert step_bias is not None
    versions = weight._version, bias._version
    *lists, counted = ([value] for value in values)
    sums = lk.two_sided_directions_(*lists, torch.stack(counted))  # type: ignore[arg-type]
    assert torch.equal(sums, expected)
    assert torch.equal(weight, step)
    assert torch.equal(bias, step_bias)
    assert (weight._version, bias._version) > versions


def test_no_layers_and_empty_layers() -> None:
    assert lk.two_sided_directions_([], [], [], [], []).shape == (0, 4)
    assert lk.two_sided_directions_([], [], [], [], [], []).shape == (0, 4)
    empty = torch.zeros(0, 4)
    for squares in (None, [torch.zeros(0, dtype=torch.float64)]):
        sums = lk.two_sided_directions_([empty], [None], [torch.eye(4)[None]], [None], [torch.zeros(0, 1, 1)], squares)
        assert sums.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("agree", [True, False])
def test_opcheck(agree: bool) -> None:
    layers = layer_tensors((2,), 6, 8, 3, 4, True, True), layer_tensors((), 5, 7, 5, 7, False, True)
    weights, biases, *constants, squares, counted = map(list, zip(*layers, strict=True))
    given = [bias for bias in biases if bias is not None]
    torch.library.opcheck(
        torch.ops.lnb_kernels.two_sided_directions_.default,
        (weights, given, *constants, *((squares, torch.stack(counted)) if agree else ([],))),
    )
