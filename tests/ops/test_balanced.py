"""``balanced_directions``: the native kernel on every instruction set, against float64; checks; the op itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import assert_close_to_reference
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels import _native
from lnb_kernels.balanced import native_kernel, reference
from lnb_kernels.balanced.reference import Problem

needs_native = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))


def definite(*shape: int) -> Tensor:
    """Symmetric positive definite matrices of mean eigenvalue about 1."""
    matrix = torch.randn(*shape, 2 * shape[-1], dtype=torch.float64)
    return (matrix @ matrix.mT / (2 * shape[-1])).float()


def problem(lead: tuple[int, ...], m: int, d: int, side: int, size: int, bias: bool) -> Problem:
    return (
        torch.randn(*lead, m, d),
        torch.randn(*lead, m, 1) if bias else None,
        definite(*lead, d // size, size),
        torch.randn(*lead, d) / d**0.5 if bias else None,
        definite(*lead, m // side, side),
    )


def double(values: Problem) -> Any:
    return tuple(None if value is None else value.double() for value in values)


def check(problems: list[Problem]) -> None:
    """At most twice the error of plain PyTorch in float32."""
    ours, products = native_kernel.balanced_directions(problems)
    plain, plain_products = reference.balanced_directions(problems)
    exact, exact_products = reference.balanced_directions([double(values) for values in problems])
    assert products.dtype == torch.float32
    if problems:
        assert_close_to_reference(products, exact_products, plain_products)
    for found, usual, truth, values in zip(ours, plain, exact, problems, strict=True):
        for part in range(1 if values[1] is None else 2):
            assert_close_to_reference(found[part], truth[part], usual[part])


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
def test_error_is_that_of_plain_float32(isa: str, bias: bool) -> None:
    check([problem((2,), m, d, side, size, bias) for m, d, side, size in SHAPES])


@needs_native
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.integers(1, 40), st.integers(1, 3), st.integers(1, 60), st.integers(1, 3), st.booleans()
        ),
        max_size=5,
    )
)  # fmt: skip
def test_any_shapes_together(layers: list[tuple[int, int, int, int, int, bool]]) -> None:
    check([problem((n, 1), side * a, size * b, side, size, bias) for n, side, a, size, b, bias in layers])


@needs_native
def test_layout_threads_and_order_change_nothing() -> None:
    """Strided inputs are what they look like; results do not depend on the number of threads or on the other layers."""
    problems = [
        problem((), 130, 64, 65, 32, True),
        problem((), 9, 20, 9, 20, False),
        problem((3,), 20, 48, 10, 24, True),
    ]
    alone = [native_kernel.balanced_directions([values]) for values in problems]
    expected_products = torch.cat([products for _, products in reversed(alone)])
    strided = [
        tuple(None if v is None else v.repeat_interleave(2, -1)[..., ::2] for v in values)
        for values in reversed(problems)
    ]
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            found, products = native_kernel.balanced_directions(strided)  # type: ignore[arg-type]
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(products, expected_products)
        for ours, ([expected], _) in zip(reversed(found), alone, strict=True):
            assert all(a is b or torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@needs_native
def test_every_entry_is_written_and_nothing_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN between guards."""
    guard = 64
    made = []

    def poisoned(shape: Any) -> Tensor:
        count = torch.Size(shape).numel()
        memory = torch.full((count + 2 * guard,), torch.nan)
        made.append(memory)
        return memory[guard : guard + count].view(shape)

    monkeypatch.setattr(Tensor, "new_empty", lambda _, shape: poisoned(shape))
    native_kernel.balanced_directions([problem((2,), m, d, a, b, True) for m, d, a, b in SHAPES])
    assert len(made) == 2 * len(SHAPES)
    for memory in made:
        assert bool(memory[guard:-guard].isfinite().all())
        assert bool(memory[:guard].isnan().all())
        assert bool(memory[-guard:].isnan().all())


BACKENDS = [reference.balanced_directions, pytest.param(native_kernel.balanced_directions, marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_descent_stand_still_and_nan_stays(backend: Callable[[list[Problem]], Any]) -> None:
    weight, bias, inverse, mean, root = problem((), 6, 8, 6, 8, True)
    assert bias is not None
    assert mean is not None
    weight[1], bias[1] = 0, 0
    root = torch.eye(6).reshape(1, 6, 6)
    [(step, step_bias)], products = backend([(weight, bias, inverse, mean, root)])
    assert bool((step[1] == 0).all() and (step_bias[1] == 0).all())
    assert bool(step.isfinite().all() and (step[2:] != 0).all())
    assert bool(products.isfinite().all())
    weight[2, 3] = torch.nan
    [(step, step_bias)], products = backend([(weight, bias, inverse, mean, root)])
    assert bool(step[2].isnan().all() and step_bias[2].isnan().all())
    assert bool(products.isnan().all())
    [(step, step_bias)], products = backend([(weight[:2], None, -inverse, None, torch.eye(2).reshape(1, 2, 2))])
    assert bool((step == 0).all() and (products == 0).all())


def test_what_the_kernel_does_not_take_goes_by_the_reference() -> None:
    wide = double(problem((), 4, 6, 4, 3, True))
    for values in (wide, problem((), 3, 300, 3, 300, True)):
        [step], [step_bias], products = lk.balanced_directions(*([value] for value in values))
        [expected], expected_products = reference.balanced_directions([values])
        assert torch.equal(step, expected[0])
        assert step_bias is not None
        assert expected[1] is not None
        assert torch.equal(step_bias, expected[1])
        assert torch.equal(products, expected_products)
        assert products.dtype == step.dtype


@needs_native
def test_layers_for_the_kernel_and_for_the_reference_side_by_side() -> None:
    """Each gets the directions and products that it gets alone, in the order of the lists."""
    problems = [
        problem((2,), 3, 300, 3, 300, True),
        problem((3,), 8, 10, 4, 5, False),
        double(problem((), 4, 6, 4, 3, True)),
        problem((), 5, 12, 5, 12, True),
    ]
    steps, products = native_kernel.balanced_directions(problems)
    alone = [native_kernel.balanced_directions([values]) for values in problems]
    assert torch.equal(products, torch.cat([own for _, own in alone]))
    assert products.dtype == torch.float64
    for step, ([expected], _) in zip(steps, alone, strict=True):
        assert all(a is b or torch.equal(a, b) for a, b in zip(step, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_are_those_of_the_directions(backend: Callable[[list[Problem]], Any]) -> None:
    """``<H, W> + <h, b>`` of every matrix, in the order of the layers."""
    problems = [problem((2, 3), 10, 12, 5, 6, True), problem((), 7, 9, 7, 9, False)]
    steps, products = backend(problems)
    expected = []
    for (step, step_bias), (weight, bias, *_) in zip(steps, problems, strict=True):
        of_matrix = torch.linalg.vecdot(step.double().flatten(-2), weight.double().flatten(-2))
        if bias is not None:
            of_matrix = of_matrix + torch.linalg.vecdot(step_bias.double().flatten(-2), bias.double().flatten(-2))
        expected.append(of_matrix.flatten())
    torch.testing.assert_close(products.double(), torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_no_layers_and_empty_layers() -> None:
    weights, biases, products = lk.balanced_directions([], [], [], [], [])
    assert weights == []
    assert biases == []
    assert products.shape == (0,)
    lists = ([torch.zeros(0, 4)], [None], [torch.eye(4)[None]], [None], [torch.zeros(0, 1, 1)])
    [step], [step_bias], products = lk.balanced_directions(*lists)
    assert step.shape == (0, 4)
    assert products.tolist() == [0]
    assert step_bias is None


def test_opcheck() -> None:
    problems = [problem((2,), 6, 8, 3, 4, True), problem((), 5, 7, 5, 7, False)]
    torch.library.opcheck(
        torch.ops.lnb_kernels.balanced_directions.default, tuple(map(list, zip(*problems, strict=True)))
    )


W, B, C, MU, P = problem((), 4, 6, 2, 3, True)
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
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD)
def test_bad_arguments_are_named(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lk.balanced_directions(*arguments)
