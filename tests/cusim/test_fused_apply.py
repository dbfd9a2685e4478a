"""The kernel of ``fused_step.apply_``, simulated on the CPU, in three orders of threads."""

from __future__ import annotations

import math
import mmap
from dataclasses import replace

import pytest
import torch
from cusim.simulated import ORDERS, SANITIZED, Simulator, cuda_kernels_on_cpu
from fused_apply_support import DECAY, LR, Model, model, params_of, stepped, thetas_of
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close_to_reference

import lnb_kernels as lk
from lnb_kernels.fused_step import Biases, Others, Weights, apply_

KINDS = [
    (torch.float32, torch.float32, False), (torch.float32, torch.bfloat16, False), (torch.bfloat16, torch.bfloat16, False),
    (torch.bfloat16, torch.float32, True), (torch.float16, torch.float16, True), (torch.float16, torch.float32, False),
]  # fmt: skip


def check(before: Model, order: str = "forward", seed: int = 1) -> None:
    """The kernel's step from ``before`` errs at most twice as much as the reference's."""
    truth, plain, actual = stepped(before), before.copy(), before.copy()
    lk.set_backend("reference")
    plain.step()
    with cuda_kernels_on_cpu() as simulator:
        simulator.set(order, seed)
        actual.step()
        assert set(simulator.launches) == {"fused_step.apply"}
    found = {"thetas": thetas_of(actual), "averages": actual.others.averages, "squares": actual.others.squares}
    by_reference = {"thetas": thetas_of(plain), "averages": plain.others.averages, "squares": plain.others.squares}
    for name, tensors in found.items():
        for tensor, right, other in zip(tensors, truth[name], by_reference[name], strict=True):
            assert_close_to_reference(tensor, right, other)
    if actual.weights.masters is not None:
        for param, master in zip(params_of(actual), thetas_of(actual), strict=True):
            assert torch.equal(param, master.to(param.dtype))


@pytest.mark.parametrize(("param", "y", "masters"), KINDS)
def test_every_kind_of_parameter(param: torch.dtype, y: torch.dtype, masters: bool) -> None:
    check(model(param, y, masters))


SIZES = st.one_of(st.integers(0, 40), st.integers(8180, 8200))
ROWS = st.tuples(st.integers(0, 30), st.integers(1, 70)) | st.tuples(st.integers(1, 3), st.integers(2700, 8200))


@given(
    weights=st.lists(ROWS | st.tuples(st.integers(8100, 8300), st.integers(1, 3)), min_size=1, max_size=3),
    biases=st.lists(SIZES, max_size=2),
    others=st.lists(st.tuples(SIZES), max_size=3),
    kind=st.sampled_from(KINDS),
    half=st.sampled_from([None, torch.bfloat16]),
    offset=st.integers(0, 9),
    order=st.sampled_from(sorted(ORDERS)),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=6 if SANITIZED else 40, deadline=None)
def test_random_models(
    weights: list[tuple[int, int]],
    biases: list[int],
    others: list[tuple[int]],
    kind: tuple[torch.dtype, torch.dtype, bool],
    half: torch.dtype | None,
    offset: int,
    order: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    if not sum(map(math.prod, (*weights, *others))) + sum(biases):
        weights = [(1, 1)]
    check(model(*kind, offset, weights, biases, others, half), order, seed)


def test_every_row_gets_its_own_scale(simulated: Simulator) -> None:
    """Widths on both sides of a piece and of a pack, with scales that name the row."""
    for width in [*range(1, 40), 4095, 4096, 4097, 8191, 8192, 8193, 10_000]:
        rows = 20_000 // width + 2
        weight, scales = torch.zeros(rows, width), torch.arange(1.0, rows + 1)
        part = Weights([weight], [torch.ones(rows, width)], [scales], [0])
        apply_(part, Biases(), Others(), torch.ones(1, dtype=torch.float64), [-1.0], [0.0])
        assert torch.equal(weight, scales[:, None].expand_as(weight)), width


def test_the_same_bits_in_every_order(simulated: Simulator) -> None:
    before = model(weights=[(9, 7), (3, 5000)], others=[(9000,)])
    results = []
    for order in ORDERS:
        simulated.set(order, 3)
        after = before.copy()
        after.step()
        results.append(after.written())
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("layers", "tables"), [(1, 1), (107, 1), (108, 2)])
def test_launches_do_not_depend_on_tensors_groups_and_dtypes_of_directions(
    simulated: Simulator, layers: int, tables: int
) -> None:
    """Three parameters a layer, of two groups, and directions and gradients of all dtypes: one table of 320."""
    before = model(weights=[(2, 3)] * layers, biases=[2] * layers, others=[(3,)] * (layers - 1))
    halves = [y.bfloat16() if i % 2 else y for i, y in enumerate(before.weights.directions)]
    gradients = [
        y.to([torch.float16, torch.bfloat16, torch.float32][i % 3]) for i, y in enumerate(before.others.gradients)
    ]
    before = replace(
        before, weights=replace(before.weights, directions=halves), others=replace(before.others, gradients=gradients)
    )
    simulated.set()
    before.step()
    assert simulated.launches == ["fused_step.apply"] * tables


def test_a_launch_for_each_kind_of_parameter(simulated: Simulator) -> None:
    """float32 norms beside bfloat16 weights with masters, as in mixed precision."""
    weights = model(torch.bfloat16, torch.bfloat16, True, others=[])
    others = model(weights=[(1, 1)], biases=[], others=[(5,), (7,)])
    mixed = replace(weights, others=replace(others.others, places=[0, 1]))
    simulated.set()
    mixed.step()
    assert simulated.launches == ["fused_step.apply"] * 2


def test_traffic_is_within_5_percent_of_the_least(simulated: Simulator) -> None:
    """Counted are bytes from memory: what the threads of a block read alike, or a row's packs, comes from a cache."""
    blocks, elements = 3, 3 * 8192
    number = 8 * 256 * blocks  # a number that each thread reads

    def traffic(parts: Model) -> tuple[int, int]:
        simulated.set()
        parts.step()
        return simulated.traffic

    base = model(others=[], weights=[(24, 1024)], biases=[])
    base.lr, base.weight_decay = [0.5, 0.5], [0.5, 0.5]
    scales = 4 * (elements // 4 - 24)  # each pack reads its row's scale, which comes from memory once
    read, written = traffic(base)
    assert (read - scales - 2 * number, written) == (2 * 4 * elements + 4 * 24, 4 * elements)
    assert read - scales - 2 * number + written <= 1.05 * 3 * 4 * elements
    base = model(others=[(elements,)], weights=[], biases=[], y=torch.bfloat16, param=torch.bfloat16, masters=True)
    base.lr, base.weight_decay, base.shorter = [0.5, 0.5], [0.5, 0.5], None
    read, written = traffic(base)
    assert (read - 3 * number, written) == ((2 + 3 * 4) * elements, (3 * 4 + 2) * elements)


def test_nothing_is_written_where_ok_is_false(simulated: Simulator) -> None:
    before = model(torch.bfloat16, torch.bfloat16, True)
    before.others = replace(before.others, gradients=[g * float("nan") for g in before.others.gradients])
    after = before.copy()
    after.ok = torch.tensor(False)
    simulated.set()
    after.step()
    assert simulated.launches == ["fused_step.apply"]
    assert simulated.traffic[1] == 0
    assert all(torch.equal(*pair) for pair in zip(before.written(), after.written(), strict=True))
    before.others.gradients[0].zero_()
    before.ok = torch.tensor(True)
    before.step()
    assert not torch.equal(before.weights.params[0], after.weights.params[0])


@pytest.mark.parametrize("route", ["kernel", "reference"])
def test_what_is_not_finite_does_not_leak(route: str) -> None:
    nan = float("nan")
    given_ = model(weights=[(4, 6), (4, 6), (4, 6)], biases=[4], others=[(40,), (40,)])
    given_.weights.directions[0].fill_(nan)
    given_.weights.row_scales[0].fill_(nan)
    given_.biases.directions[0].fill_(nan)
    given_.scales[0] = 0  # the first layer's
    given_.weights.directions[1][2].fill_(nan)
    given_.weights.row_scales[1][2] = 0
    given_.others.squares[0][3] = nan
    given_.others.averages[0][5] = nan
    given_.others.gradients[0][7] = 1e30  # beyond what can be squared
    before = given_.copy()
    if route == "kernel":
        with cuda_kernels_on_cpu():
            given_.step()
    else:
        given_.step()
    decayed = [(1 - rate * decay) for rate, decay in zip(map(float, LR), map(float, DECAY), strict=True)]
    shorter = before.shorter
    assert shorter is not None
    torch.testing.assert_close(given_.weights.params[0], before.weights.params[0] * (decayed[0] * shorter[0]).float())
    torch.testing.assert_close(given_.biases.params[0], before.biases.params[0] * decayed[0])
    assert all(bool(weight.isfinite().all()) for weight in params_of(given_))
    torch.testing.assert_close(
        given_.weights.params[1][2], before.weights.params[1][2] * (decayed[1] * shorter[1]).float()
    )
    others, old = given_.others, before.others
    for stands in (3, 5):
        torch.testing.assert_close(others.params[0][stands], old.params[0][stands] * decayed[1])
    assert not torch.isclose(others.params[0][7], old.params[0][7] * decayed[1])
    assert bool(others.squares[0][7].isfinite())
    assert others.finite is not None
    assert others.finite.tolist() == [False, True]


def test_adam_is_torchs(simulated: Simulator) -> None:
    ours, theirs = torch.randn(500), torch.nn.Parameter(torch.empty(500))
    theirs.data.copy_(ours)
    adam = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.25)
    average, square = torch.zeros(500), torch.zeros(500)
    rule = replace(model().rule, take=0.0, epsilon=1e-8)
    for t in range(1, 4):
        gradient = torch.randn(500)
        theirs.grad = gradient.clone()
        adam.step()
        corrections = [torch.tensor([1 - b**t], dtype=torch.float64) for b in (0.9, 0.99)]
        part = Others([ours], [gradient], [average], [square], 1 / corrections[0], corrections[1], [0])
        apply_(Weights(), Biases(), part, torch.ones(1, dtype=torch.float64), [0.01], [0.25], rule)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_what_the_kernel_does_not_take_goes_to_the_reference(simulated: Simulator) -> None:
    """Strides without gaps are taken where all agree; other strides, negated views and float64 are not."""
    weights = [torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    weights += [torch.randn(5, 4).t(), torch.randn(4, 5).double()]
    weights.append(torch._neg_view(torch.randn(4, 5)))
    directions = [torch.randn_like(weights[0]), torch.randn(4, 27), *(torch.randn(4, 5) for _ in range(3))]
    rows = [torch.rand(4), torch.rand(4), torch.rand(4), torch.rand(4).double(), torch.rand(4)]
    scales, expected = torch.rand(5, dtype=torch.float64), []
    for weight, direction, row, scale in zip(weights, directions, rows, scales, strict=True):
        moved = direction.double().reshape(weight.shape) * row.double().view(-1, *[1] * (weight.dim() - 1))
        expected.append((weight.double() * (1 - 0.5 * 0.25) - 0.5 * scale * moved).to(weight.dtype))
    simulated.set()
    apply_(Weights(weights, directions, rows, list(range(5))), Biases(), Others(), scales, [0.5], [0.25])
    assert simulated.launches == ["fused_step.apply"]
    assert simulated.traffic[1] == 4 * weights[0].numel()
    for weight, right in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, right)


def test_a_launch_that_fails_is_an_exception_with_the_kernel_in_it(simulated: Simulator) -> None:
    simulated.set(fail_launch=0)
    with pytest.raises(RuntimeError, match=r"fused_step\.apply failed: simulated failure"):
        model().step()


def test_shared_memory_is_refused_before_any_write(simulated: Simulator) -> None:
    memory = torch.zeros(40)
    scales = torch.ones(1, dtype=torch.float64)
    one = torch.ones(2)
    for params, strided in (
        ([memory[:10].view(2, 5), memory[5:15].view(2, 5)], False),
        ([memory[:10].view(5, 2).t()], True),
    ):
        directions = [memory[8:18].view(2, 5)] if strided else [torch.ones(2, 5)] * 2
        part = Weights(params, directions, [one] * len(params), [0] * len(params))
        with pytest.raises(ValueError, match="overlap in memory"):
            apply_(part, Biases(), Others(), scales, [0.5], [0.5])
    assert simulated.launches == []
    assert not memory.any()


def test_bindings_refuse_what_would_crash(simulated: Simulator) -> None:
    native = simulated.module
    x, y, sums = torch.zeros(8), torch.zeros(8), torch.zeros(8, dtype=torch.float64)
    a, b, to = x.data_ptr(), y.data_ptr(), sums.data_ptr()
    f32, f64, bf16 = (int(getattr(native.Type, name)) for name in ("FLOAT32", "FLOAT64", "BFLOAT16"))
    names = [
        "move",
        "theta",
        "param",
        "param_type",
        "y",
        "y_type",
        "rows",
        "width",
        "m",
        "v",
        "size",
        "place",
        "number",
        "group",
    ]
    weight = dict(zip(names, [0, a, 0, f32, b, f32, b, 2, 0, 0, 4, 0, 0, 0], strict=True))
    other = {**weight, "move": 2, "m": to, "v": to + 32, "rows": 0, "width": 0}
    numbers = {
        "scales": to,
        "shorter": 0,
        "shares": to,
        "corrections": to,
        "finite": 0,
        "ok": 0,
        "places": 1,
        "others": 1,
    }
    rate = (0.5, 0, native.Type.FLOAT32)
    calls = [
        (weight, {}, {"move": 3}, "entries.0.: move is 3"),
        (weight, {}, {"param_type": 9}, "type of the parameter is 9"),
        (weight, {}, {"param_type": f64}, "no kernel for these dtypes"),
        (weight, {}, {"param": a}, "no kernel for these dtypes"),
        (weight, {}, {"theta": 0}, "thetas.0. has entries but a null pointer"),
        (weight, {}, {"theta": a + 2}, "thetas.0. is not aligned"),
        (weight, {}, {"param": a + 1, "param_type": bf16}, "params.0. is not aligned"),
        (weight, {}, {"y": 0}, "directions and gradients.0. has entries but a null"),
        (weight, {}, {"y": a + 4}, "overlap in memory"),
        (weight, {}, {"rows": 0}, "row_scales.0. has entries but a null"),
        (weight, {}, {"rows": a + 4}, "overlap in memory"),
        (weight, {}, {"width": 3}, "rows of 3 entries do not make up 4"),
        (weight, {}, {"width": 0}, "rows of 0 entries"),
        (weight, {}, {"size": -4}, "negative size"),
        (weight, {}, {"place": 1}, "place is 1; allowed are ints in .0, 1"),
        (weight, {}, {"group": -1}, "group is -1"),
        (weight, {"scales": 0}, {}, "scales has entries but a null"),
        (weight, {"shorter": to + 4}, {}, "shorter is not aligned"),
        (other, {"shares": 0}, {}, "shares has entries but a null"),
        (other, {"corrections": to + 4}, {}, "corrections is not aligned"),
        (other, {"finite": a}, {}, "overlap in memory"),
        (other, {}, {"number": 1}, "number is 1"),
        (other, {}, {"m": 0}, "averages.0. has entries but a null"),
        (other, {}, {"v": to + 2}, "squares.0. is not aligned"),
        (other, {}, {"v": to + 4}, "overlap in memory"),
    ]  # fmt: skip
    for base, changed_numbers, changed, message in calls:
        call = native.MoveCall(*{**numbers, **changed_numbers}.values(), 0.5, 0.5, 0.5, 0.5, 1.0)
        fields = tuple({**base, **changed}.values())
        with pytest.raises(ValueError, match=message):
            native.fused_apply([fields], [rate], [rate], call, (0, 0))
    call, fields = native.MoveCall(*numbers.values(), 0.5, 0.5, 0.5, 0.5, 1.0), tuple(weight.values())
    with pytest.raises(ValueError, match=r"lr\[0\] is not aligned"):
        native.fused_apply([fields], [(0.0, a + 1, native.Type.FLOAT32)], [rate], call, (0, 0))
    with pytest.raises(ValueError, match="weight_decay: one per lr"):
        native.fused_apply([fields], [rate], [], call, (0, 0))
    assert simulated.launches == []
    native.check_moves([tuple(other.values())], [rate], [rate], call)


def test_offsets_beyond_two_to_the_31_elements(simulated: Simulator) -> None:
    """Only the last block runs, at the end of memory of which only the pages that it touches exist."""
    native = simulated.module
    rows, width = 2**19 + 1, 8200
    size, flags = rows * width, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    with mmap.mmap(-1, 2 * size, flags=flags) as memory, mmap.mmap(-1, 2 * size, flags=flags) as other_memory:
        x, y = (torch.frombuffer(buffer, dtype=torch.bfloat16) for buffer in (memory, other_memory))
        x[-1], y[-1] = 3.0, 2.0
        row_scales, scales = torch.zeros(rows), torch.full((1,), 0.5, dtype=torch.float64)
        row_scales[-1] = 4.0
        kind, rate = int(native.Type.BFLOAT16), (1.0, 0, native.Type.FLOAT64)
        fields = (0, x.data_ptr(), 0, kind, y.data_ptr(), kind, row_scales.data_ptr(), width, 0, 0, size, 0, 0, 0)
        call = native.MoveCall(scales.data_ptr(), 0, 0, 0, 0, 0, 1, 0, 0.5, 0.5, 0.5, 0.5, 1.0)
        simulated.set(first_block=-(-size // native.PIECE_SIZE) - 1)
        native.fused_apply([fields], [rate], [rate], call, (0, 0))
        assert x[-1] == 3.0 - (0.5 * 4.0 * 2.0 + 3.0)
        del x, y
