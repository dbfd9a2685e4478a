"""The CUDA kernels for conjugate gradients, simulated on the CPU, against float64 and in three orders of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cusim.simulated import ORDERS, SANITIZED, Simulator, cuda_kernels_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from pcg_support import check, equation
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels.pcg import cuda_kernel, reference


def by_phases(
    s: Tensor, g: Tensor, h0: Any, mu: Any, var: Any, iterations: int, ridge: float, scope: str, layer_dims: int
) -> Any:
    """The iteration on the vector kernels, with the product by torch."""
    a = reference.metric(s, g.shape[-1], ridge)
    bias = g.shape[-1] == s.shape[-1]
    return cuda_kernel.iterate(lambda v: v @ a, g, h0, mu, var, bias, iterations, scope, layer_dims)


FLAGS = {"bias": st.booleans(), "start": st.booleans(), "arrow": st.booleans()}
COMMON = {"order": st.sampled_from(sorted(ORDERS)), "seed": st.integers(0, 2**31 - 1), "iterations": st.integers(0, 3)}


@given(m=st.integers(1, 40), d=st.integers(1, 128), layers=st.integers(1, 3), **FLAGS, **COMMON)
@settings(max_examples=6 if SANITIZED else 40, deadline=None)
def test_small_equations_in_one_launch(
    m: int, d: int, layers: int, bias: bool, start: bool, arrow: bool, order: str, seed: int, iterations: int
) -> None:
    torch.manual_seed(seed)
    with cuda_kernels_on_cpu() as simulator:
        simulator.set(order, seed)
        tensors = equation((layers,), m, d, bias, start, arrow)
        check(cuda_kernel.pcg_rows, tensors, iterations, 0.1, "neuron")
        assert simulator.launches == ["pcg_rows"]


@given(m=st.integers(1, 12), d=st.sampled_from([1, 31, 128, 129, 300]), layers=st.integers(1, 3), **FLAGS, **COMMON)
@settings(max_examples=6 if SANITIZED else 30, deadline=None)
@pytest.mark.parametrize("scope", ["neuron", "layer"])
def test_vector_phases(
    scope: str,
    m: int,
    d: int,
    layers: int,
    bias: bool,
    start: bool,
    arrow: bool,
    order: str,
    seed: int,
    iterations: int,
) -> None:
    torch.manual_seed(seed)
    with cuda_kernels_on_cpu() as simulator:
        simulator.set(order, seed)
        check(by_phases, equation((layers,), m, d, bias, start, arrow), iterations, 0.1, scope, orders=4)


@pytest.mark.parametrize("arrow", [True, False])
@pytest.mark.parametrize("columns", [1, 3, 4, 5, 8, 1277, 1278])
def test_rows_begin_anywhere_between_16_byte_boundaries(simulated: Simulator, columns: int, arrow: bool) -> None:
    """Five rows meet every offset; the two widest are those between which blocks grow."""
    bias = columns % 2 == 1 and columns > 1
    tensors = equation((), 5, columns - bias, bias, True, arrow)
    check(by_phases, tensors, 1, 0.1, "neuron")


def test_tensors_that_begin_between_boundaries_are_read_entry_by_entry(simulated: Simulator) -> None:
    tensors = equation((), 5, 12, True, True, True)
    for name in ("g", "h0"):
        memory = torch.empty(tensors[name].numel() + 1)
        tensors[name] = memory[1:].view_as(tensors[name]).copy_(tensors[name])
        assert tensors[name].data_ptr() % 16
    check(by_phases, tensors, 2, 0.1, "neuron")


def test_rows_that_thread_blocks_share(simulated: Simulator) -> None:
    check(by_phases, equation((1,), 3, 2000, True, True, True), 2, 0.1, "neuron")


@pytest.mark.parametrize("order", ORDERS)
def test_groups_of_one_layer_share_their_step(simulated: Simulator, order: str) -> None:
    simulated.set(order)
    check(by_phases, equation((2, 3), 4, 10, False, True, True), 2, 0.1, "layer", layer_dims=3)


@pytest.mark.parametrize("order", ORDERS)
def test_layers_of_different_shapes_in_one_launch(simulated: Simulator, order: str) -> None:
    shapes = [((), 33, 128, True), ((2,), 5, 7, False), ((), 1, 1, True)]
    equations = [equation(batch, m, d, bias, True, True) for batch, m, d, bias in shapes]
    simulated.set(order)
    results = cuda_kernel.pcg_rows_list([tuple(tensors.values()) for tensors in equations], 2, 0.1)
    assert simulated.launches == ["pcg_rows"]
    for tensors, (h, norms) in zip(equations, results, strict=True):
        check(lambda *_, h=h, norms=norms: (h, norms), tensors, 2, 0.1, "neuron")


def test_many_layers_take_one_launch_for_every_table(simulated: Simulator) -> None:
    tensors = equation((130,), 1, 2, False, False, False)
    check(cuda_kernel.pcg_rows, tensors, 1, 0.1, "neuron")
    assert simulated.launches == ["pcg_rows"] * 2


def test_launches_of_a_step_do_not_depend_on_the_number_of_layers(simulated: Simulator) -> None:
    for layers in (1, 50):
        for scope, expected in (
            ("neuron", ["start", "step", "step"]),
            ("layer", ["start", "product", "move", "direction", "product", "move"]),
        ):
            simulated.set()
            by_phases(*equation((layers,), 2, 4, False, False, False).values(), 2, 0.1, scope, 2)
            phases = [name.removeprefix("pcg_phase.") for name in simulated.launches if "pcg_phase" in name]
            assert phases == expected


def test_one_second_moment_for_several_layers(simulated: Simulator) -> None:
    tensors = equation((3,), 4, 6, True, False, False)
    tensors["s"] = tensors["s"][1:2]
    check(cuda_kernel.pcg_rows, tensors, 2, 0.1, "neuron")


@pytest.mark.parametrize("solve", [cuda_kernel.pcg_rows, by_phases])
def test_a_finished_row_stays_and_the_others_go_on(simulated: Simulator, solve: Any) -> None:
    tensors = equation((), 3, 6, True, True, False)
    a = reference.metric(tensors["s"].double(), 7, 0.1)
    tensors["h0"][1] = (tensors["g"][1].double() @ a.inverse()).float()  # the solution
    tensors["g"][2] = tensors["h0"][2] = 0
    h, norms = solve(*tensors.values(), 3, 0.1, "neuron", 2)
    assert torch.equal(h[1:], tensors["h0"][1:])
    assert torch.equal(h[2], torch.zeros(7))
    assert norms[3, 0] < norms[0, 0]


@pytest.mark.parametrize("solve", [cuda_kernel.pcg_rows, by_phases])
def test_no_step_along_a_direction_without_curvature(simulated: Simulator, solve: Any) -> None:
    s = torch.zeros(4, 4)
    g = torch.ones(2, 3)
    h, norms = solve(s, g, None, None, None, 2, 0.0, "neuron", 2)
    assert torch.equal(h, torch.zeros(2, 3))
    assert torch.equal(norms, torch.full((3, 2), 3**0.5))


def test_pcg_uses_the_kernels(simulated: Simulator) -> None:
    tensors = equation((), 5, 20, True, True, True)
    s, g, h0, mu, var = tensors.values()
    lk.pcg(s, g, h0, (mu, var), 2, 0.1, "neuron")
    assert simulated.launches == ["pcg_rows"]
    simulated.set()
    lk.pcg(lambda v: v @ reference.metric(s, 21, 0.1), g, h0, (mu, var), 2, 0.0, "neuron")
    assert simulated.launches == ["pcg_phase.start", "pcg_phase.step", "pcg_phase.step"]
    simulated.set()
    half = g.bfloat16()
    h, norms = lk.pcg(s, half, h0, (mu, var), 2, 0.1, "neuron")
    assert (h.dtype, norms.dtype) == (torch.bfloat16, torch.float32)
    assert simulated.launches == ["pcg_rows"]


def test_what_the_kernels_do_not_take_goes_elsewhere(simulated: Simulator) -> None:
    wide = equation((), 2, 130, False, False, False)
    lk.pcg(wide["s"], wide["g"], None, None, 1, 0.1, "neuron")
    small = equation((), 2, 10, False, False, False)
    lk.pcg(small["s"], small["g"], None, None, 1, 0.1, "layer")
    lk.pcg(small["s"], small["g"][:0], None, None, 1, 0.1, "neuron")
    lk.pcg(lambda v: v, small["g"].requires_grad_(), None, None, 1, 0.0, "neuron")
    assert simulated.launches == []


def test_a_launch_that_fails_is_an_exception_with_the_kernel_in_it(simulated: Simulator) -> None:
    small = equation((), 3, 6, False, False, False)
    for scope, names in (("neuron", ["start", "step"]), ("layer", ["start", "product", "move", "direction"])):
        simulated.set()
        by_phases(*small.values(), 2, 0.1, scope, 2)
        made = list(simulated.launches)
        for name in names:
            simulated.set(fail_launch=made.index(f"pcg_phase.{name}"))
            with pytest.raises(RuntimeError, match=rf"pcg_phase\.{name} failed: simulated failure"):
                by_phases(*small.values(), 2, 0.1, scope, 2)
    simulated.set(fail_launch=0)
    with pytest.raises(RuntimeError, match="pcg_rows failed: simulated failure"):
        cuda_kernel.pcg_rows(*small.values(), 2, 0.1, "neuron", 2)


ROW = ("s", "g", "h0", "mu", "var", "h", "norms", "norm_stride", "m", "d", "columns")
VECTOR = ("g", "mu", "var", "h", "r", "p", "ap", "first_row", "unit", "m", "d", "columns")
BAD_LAYERS = [
    ("g", 0, r"layers\[0\]: g has entries but a null pointer"),
    ("g", 1026, r"layers\[0\]: g is not aligned to its dtype"),
    ("h", 0, "h has entries but a null pointer"),
    ("mu", 1026, "mu is not aligned"),
    ("var", 0, "mu and var come together"),
    ("m", -1, r"has -1 rows; allowed are at most 2147483616"),
    ("m", 2**31, r"has 2147483648 rows; allowed are at most 2147483616"),
    ("d", 5, "has 4 columns for 5 features; allowed are as many or one more"),
    ("columns", 6, "has 6 columns for 4 features"),
]
BAD_ROWS = [
    *BAD_LAYERS,
    ("s", 0, "s has entries but a null pointer"),
    ("norms", 0, "norms has entries but a null pointer"),
    ("h0", 1026, "h0 is not aligned"),
    ("norm_stride", 1, "norm_stride is less than the rows"),
]
BAD_VECTORS = [
    *BAD_LAYERS,
    ("ap", 0, "ap has entries but a null pointer"),
    ("p", 0, "p has entries but a null pointer"),
    ("first_row", -1, "first_row or unit is negative"),
]
SHAPE = {"m": 2, "d": 4, "columns": 4, "norm_stride": 2, "first_row": 0, "unit": 0}


@pytest.mark.parametrize(("field", "value", "message"), BAD_ROWS)
def test_bindings_refuse_rows_that_would_crash(simulated: Simulator, field: str, value: int, message: str) -> None:
    memory = torch.zeros(64)
    layer = {name: memory.data_ptr() for name in ROW} | SHAPE | {field: value}
    with pytest.raises(ValueError, match=message):
        simulated.module.pcg_rows([[layer[name] for name in ROW]], 2, 0.1, 1e-5, (0, 0))
    with pytest.raises(ValueError, match="iterations is negative"):
        simulated.module.pcg_rows([], -1, 0.1, 1e-5, (0, 0))
    assert simulated.launches == []


@pytest.mark.parametrize(("field", "value", "message"), BAD_VECTORS)
def test_bindings_refuse_vectors_that_would_crash(simulated: Simulator, field: str, value: int, message: str) -> None:
    native, memory, sums = simulated.module, torch.zeros(64), [torch.zeros(8, dtype=torch.float64).data_ptr()] * 6
    layer = {name: memory.data_ptr() for name in VECTOR} | SHAPE
    for broken in ([0, *sums[1:]], [sums[0] + 4, *sums[1:]]):
        with pytest.raises(ValueError, match=r"units has entries but a null pointer|units is not aligned"):
            native.pcg_phase(native.Phase.STEP, [[layer[name] for name in VECTOR]], True, broken, sums, 1e-5, (0, 0))
    layer[field] = value
    with pytest.raises(ValueError, match=message):
        native.pcg_phase(native.Phase.STEP, [[layer[name] for name in VECTOR]], True, sums, sums, 1e-5, (0, 0))
    assert simulated.launches == []


def test_rows_past_two_to_the_31_take_several_launches(simulated: Simulator) -> None:
    """Two layers of half as many rows each are one more than a launch counts; the last block of each table runs."""
    native, rows = simulated.module, 2**30
    vectors, sums = torch.zeros(4), torch.zeros(8, dtype=torch.float64)
    assert rows <= native.LAYER_ROWS
    # Addresses such that the last row's entries are those of `vectors`.
    first = vectors.data_ptr() - 4 * (rows - 1)
    layer = dict.fromkeys(VECTOR, first) | {
        "mu": 0,
        "var": 0,
        "m": rows,
        "d": 1,
        "columns": 1,
        "first_row": 0,
        "unit": 0,
    }
    address = [sums.data_ptr() - 8 * (rows - 1)] * 6
    simulated.set(first_block=rows - 1)
    fields = [layer[name] for name in VECTOR]
    native.pcg_phase(native.Phase.PRODUCT, [fields, fields], True, address, address, 1e-5, (0, 0))
    assert simulated.launches == ["pcg_phase.product"] * 2
