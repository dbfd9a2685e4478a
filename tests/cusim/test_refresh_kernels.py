"""The CUDA kernels of the refresh, simulated on the CPU: against float64, and in three orders of threads."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from cusim.refresh_contract import Contract, Run
from cusim.refresh_support import NOISE_LEVEL, SHAPES, Shape, assert_refreshed, layer, orders_of, run
from cusim.simulated import ORDERS, Simulator
from support import assert_close_to_reference
from torch import Tensor

import lnb_kernels as lk
from lnb.statistics.orthogonalize import QUINTIC, STEPS
from lnb_kernels.newton_schulz import reference as newton_schulz
from lnb_kernels.refresh import Refresher
from lnb_kernels.spd_inverse import reference as spd_inverse

KERNELS = ["average_moments", "input_metrics", "output_moments", "output_roots"]


def symmetric(count: int, n: int, condition: float) -> Tensor:
    """Random matrices with eigenvalues from 1 to 1 / condition."""
    basis = torch.linalg.qr(torch.randn(count, n, n, dtype=torch.float64))[0]
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    a = ((basis * values) @ basis.mT).float()
    return (a + a.mT) / 2


# --- Inverses and roots by themselves.


@pytest.mark.parametrize("condition", [1e2, 1e6])
@pytest.mark.parametrize(("n", "count"), [(1, 2), (17, 12), (48, 6), (144, 2)])
def test_inverses_err_as_those_of_a_factorisation(simulated: Simulator, n: int, count: int, condition: float) -> None:
    torch.manual_seed(n)
    matrices = symmetric(count, n, condition)
    inverses, failed = lk.spd_inverse(matrices)
    assert simulated.launches == ["spd_inverse"]
    assert not bool(failed.any())
    assert_close_to_reference(inverses, torch.linalg.inv(matrices.double()), spd_inverse.spd_inverse(matrices)[0])
    assert torch.equal(inverses, inverses.mT)


def test_matrices_without_an_inverse_are_told_and_the_others_are_done(simulated: Simulator) -> None:
    torch.manual_seed(0)
    matrices = symmetric(7, 20, 10.0)
    matrices[0] = -matrices[0]
    matrices[2, 19, 19] = -1
    matrices[3, 0, 1] = matrices[3, 1, 0] = torch.nan
    matrices[4, 19, 19] = torch.inf
    matrices[5] = 0
    inverses, failed = lk.spd_inverse(matrices)
    assert failed.tolist() == [True, False, True, True, True, True, False]
    torch.testing.assert_close(inverses[1::5] @ matrices[1::5], torch.eye(20).expand(2, 20, 20), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "count", "steps"), [(1, 2, 5), (16, 6, 1), (33, 4, 5), (144, 1, 5)])
def test_products_of_newton_schulz_factors(simulated: Simulator, n: int, count: int, steps: int) -> None:
    torch.manual_seed(n)
    power = symmetric(count, n, 1e4) / n
    root = lk.newton_schulz_root(power, QUINTIC, steps)
    assert simulated.launches == ["newton_schulz_root"]
    truth = newton_schulz.newton_schulz_root(power.double(), list(QUINTIC), steps)
    assert_close_to_reference(root, truth, newton_schulz.newton_schulz_root(power, list(QUINTIC), steps))
    assert torch.equal(root, root.mT)


def test_what_these_kernels_do_not_take_goes_elsewhere(simulated: Simulator) -> None:
    large = symmetric(1, 145, 10.0)
    torch.testing.assert_close(lk.spd_inverse(large)[0] @ large, torch.eye(145).unsqueeze(0), rtol=0, atol=1e-4)
    expected = newton_schulz.newton_schulz_root(large, list(QUINTIC), 2)
    torch.testing.assert_close(lk.newton_schulz_root(large, QUINTIC, 2), expected)
    torch.testing.assert_close(lk.newton_schulz_root(large[:, :3, :3], QUINTIC, 0), torch.eye(3).unsqueeze(0))
    assert lk.spd_inverse(large[:0])[0].shape == (0, 145, 145)
    lk.spd_inverse(large[:, :4, :4].double())
    assert simulated.launches == []


# --- The refresh.


class TestContract(Contract):
    shapes = SHAPES
    gradients = tuple(itertools.product((torch.float32, torch.bfloat16, torch.float16), (8, 5)))  # 8: in whole accesses

    @pytest.fixture
    def run(self, simulated: Simulator) -> Run:
        return run


def test_a_refresh_is_four_launches(simulated: Simulator) -> None:
    run([layer(shape, seed) for seed, shape in enumerate(SHAPES)])
    assert simulated.launches == KERNELS


def test_largest_blocks_move_little_more_than_they_have_to(simulated: Simulator) -> None:
    of = layer(Shape(1, 1, 144, 1, 144))
    [result] = run([of])
    read, wrote = simulated.traffic
    square, moment, half, partial = 144 * 144, 145 * 145, 144 * 145 // 2, 45 * 256
    must_read = 2 * moment + half + 2 * square + partial + half  # moments; for the inverse; G and C^-1; for the root
    must_write = moment + square + partial + 2 * square
    assert read <= 1.05 * 4 * must_read
    assert wrote <= 1.05 * 4 * must_write
    assert_refreshed([result, *run(orders_of(of)[1:])], of)


@pytest.mark.parametrize("order", sorted(set(ORDERS) - {"forward"}))
def test_bits_do_not_depend_on_the_order_of_threads(simulated: Simulator, order: str) -> None:
    layers = [layer(shape, seed) for seed, shape in enumerate(SHAPES)]
    power = symmetric(2, 33, 1e3)

    def everything() -> list[Tensor]:
        values = [value for result in run(layers) for value in result.values()]
        return [*values, *lk.spd_inverse(power), lk.newton_schulz_root(power, QUINTIC, 3)]

    expected = everything()
    simulated.set(order, seed=7)
    assert all(map(torch.equal, everything(), expected))


def test_launches_do_not_depend_on_the_number_of_layers(simulated: Simulator) -> None:
    small = Shape(1, 1, 2, 1, 2)
    [expected] = run([layer(small)])
    # 172 layers' neurons make a table. Of each launch only what comes after 170 thread blocks is run.
    for count, launches in ((172, KERNELS), (180, [*KERNELS[:3], KERNELS[2], *[KERNELS[3]] * 2])):
        simulated.set(first_block=170)
        results = run([layer(small)] * count)
        assert simulated.launches == launches
        assert torch.equal(results[171]["root"], expected["root"])


# --- Failures.


def test_a_launch_that_fails_is_an_exception_with_the_kernel_in_it(simulated: Simulator) -> None:
    for number, name in enumerate(KERNELS):
        simulated.set(fail_launch=number)
        with pytest.raises(RuntimeError, match=f"{name} failed: simulated failure"):
            run([layer(SHAPES[0])])
    power = symmetric(1, 3, 2.0)
    for call, name in (
        (lambda: lk.spd_inverse(power), "spd_inverse"),
        (lambda: lk.newton_schulz_root(power, QUINTIC, 1), "newton_schulz_root"),
    ):
        simulated.set(fail_launch=0)
        with pytest.raises(RuntimeError, match=f"{name} failed: simulated failure"):
            call()


INPUT = (
    "gathered",
    "squarable",
    "average",
    "steps",
    "inverse",
    "mean",
    "stride",
    "side",
    "groups",
    "blocks",
    "relative",
)
NUMBERS = ("decay", "ridge", "sample_ridge", "data_inputs", "sample_every")
OUTPUT = (
    "partials", "scales", "inverse", "mean", "average", "root", "input_size", "index", "groups", "rows", "inputs", "side",
    "input_side",
)  # fmt: skip
BAD_INPUTS = [
    ("gathered", 0, "gathered has entries but a null pointer"),
    ("average", 1026, "average is not aligned"),
    ("inverse", 0, "inverse has entries but a null pointer"),
    ("mean", 1026, "mean is not aligned"),
    ("steps", 0, "steps and a decay come together"),
    ("side", 145, r"layers\[0\]: side is 145; allowed are 1 to 144"),
    ("blocks", 0, "blocks is 0; allowed are 1 to"),
    ("decay", 1.0, "decay is 1.0.*; allowed are 0 to below 1"),
    ("sample_every", 0.5, "sample_every is less than 1"),
]
BAD_OUTPUTS = [
    ("weight", 0, "weight has entries but a null pointer"),
    ("bias", 1026, "bias is not aligned"),
    ("bias", 0, "bias and mean come together"),
    ("partials", 0, "partials has entries but a null pointer"),
    ("scales", 1028, "scales is not aligned"),
    ("root", 1026, "root is not aligned"),
    ("average", 0, "an average and a decay come together"),
    ("input_size", 1028, "input_size is not aligned"),
    ("index", 1, "it has no facts"),
    ("rows", 5, "side does not divide rows"),
    ("inputs", 4, "input_side does not divide inputs"),
    ("input_side", 0, "input_side is 0; allowed are 1 to 144"),
    ("ridge", math.nan, "ridge is not at least 0"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_INPUTS)
def test_bindings_refuse_inputs_that_would_crash(simulated: Simulator, field: str, value: Any, message: str) -> None:
    memory = torch.zeros(4096, dtype=torch.float64).data_ptr()
    given = dict.fromkeys(INPUT, memory) | {"stride": 0, "side": 3, "groups": 1, "blocks": 2, "relative": 1}
    given |= {"decay": 0.5, "ridge": 1.0, "sample_ridge": 0.0, "data_inputs": 0.0, "sample_every": 1.0, field: value}
    fields = [given[name] for name in INPUT], [given[name] for name in NUMBERS]
    for function, middle in ((simulated.module.average_moments, 0), (simulated.module.input_metrics, 1e-6)):
        with pytest.raises(ValueError, match=message):
            function([fields], middle, memory, memory, (0, 0))
    assert simulated.launches == []


@pytest.mark.parametrize(("field", "value", "message"), BAD_OUTPUTS)
def test_bindings_refuse_outputs_that_would_crash(simulated: Simulator, field: str, value: Any, message: str) -> None:
    native, memory = simulated.module, torch.zeros(8192, dtype=torch.float64).data_ptr()
    given = dict.fromkeys((*OUTPUT, "weight", "bias"), memory)
    given |= {"index": 0, "groups": 1, "rows": 4, "inputs": 6, "side": 2, "input_side": 3, "ridge": 0.1, field: value}
    types = native.Type.FLOAT32, native.Type.FLOAT64
    gradients = [(given[name], 0, 0, *types) for name in ("weight", "bias")]
    fields = (*gradients, [given[name] for name in OUTPUT], (0.9, 0.1, 0.5, given["ridge"]))
    with pytest.raises(ValueError, match=message):
        native.output_moments([fields], memory, 1, (0, 0))
    with pytest.raises(ValueError, match=message):
        native.output_roots([fields], QUINTIC, STEPS, memory, 1, (0, 0))
    assert simulated.launches == []


def test_bindings_refuse_matrices_that_would_crash(simulated: Simulator) -> None:
    native, memory = simulated.module, torch.zeros(64).data_ptr()
    for arguments, message in (
        ((0, memory, memory, 1, 3, (0, 0)), "matrices has entries but a null pointer"),
        ((memory, memory + 2, memory, 1, 3, (0, 0)), "inverses is not aligned"),
        ((memory, memory, 0, 1, 3, (0, 0)), "failed has entries but a null pointer"),
        ((memory, memory, memory, 1, 145, (0, 0)), "n is 145; allowed are 1 to 144"),
        ((memory, memory, memory, -1, 3, (0, 0)), "count is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            native.spd_inverses(*arguments)
    with pytest.raises(ValueError, match="steps is 0"):
        native.newton_schulz_roots(memory, memory, 1, 3, QUINTIC, 0, (0, 0))
    with pytest.raises(ValueError, match="roots has entries but a null pointer"):
        native.newton_schulz_roots(memory, 0, 1, 3, QUINTIC, 1, (0, 0))
    assert Refresher("native", 144).refresh([], None, NOISE_LEVEL, QUINTIC, STEPS)
    assert simulated.launches == []
