"""The last pass of a step over all parameters of a model, a launch for each kind of parameter: see ``apply.py`` for the rules.

A program moves ``PIECE`` entries of one parameter. What a parameter's step is multiplied by is found in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lnb_kernels._triton.launch import Launches
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.tables import MOST_ITEMS, address, field, item_of, table_of
from lnb_kernels._writes import require_aligned
from lnb_kernels.fused_step.apply_entries import Entry, Numbers, width_of
from lnb_kernels.fused_step.triton_direct import TYPES, ahead
from lnb_kernels.fused_step.triton_finish import rates_on_device
from lnb_kernels.scaling import largest_squarable

FIELDS = tl.constexpr(12)
THETA, COPY, Y, ROW_SCALES, AVERAGE, SQUARE, ENTRIES, WIDTH, PLACE, NUMBER, LR, DECAY = map(tl.constexpr, range(12))
PIECE = 2048
MOST = tl.constexpr(largest_squarable(torch.float32))


@triton.jit
def lengths(table_ptr, item, rates_ptr, scales_ptr, shorter_ptr, ITEMS: tl.constexpr, SHORTENS: tl.constexpr):
    """``lr scale``, and what is taken off theta by weight decay and shortening, float32."""
    rate = tl.load(rates_ptr + field(table_ptr, item, LR, ITEMS, FIELDS))
    place = field(table_ptr, item, PLACE, ITEMS, FIELDS)
    shrink = rate * tl.load(rates_ptr + field(table_ptr, item, DECAY, ITEMS, FIELDS))
    if SHORTENS:  # 1 - factor (1 - shrink), without losing the low bits of a small one
        factor = tl.load(shorter_ptr + place)
        shrink = (1.0 - factor) + factor * shrink
    return (rate * tl.load(scales_ptr + place)).to(tl.float32), shrink.to(tl.float32)


@triton.jit
def left_of(table_ptr, item, begin, ITEMS: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr):
    """How many entries there are from ``begin`` on, at most a piece, in whole packs of eight where ``ALIGNED``."""
    left = tl.minimum(field(table_ptr, item, ENTRIES, ITEMS, FIELDS) - begin, PIECE).to(tl.int32)
    if ALIGNED:
        left = tl.multiple_of(left, 8)
    return left


@triton.jit
def squarable(x):
    """``x`` with entries that can be squared; NaN stays NaN."""
    return tl.where(x > MOST, MOST, tl.where(x < -MOST, -MOST, x))


@triton.jit
def move_layers_kernel(
    table_ptr, rates_ptr, scales_ptr, shorter_ptr, ok_ptr,
    THETA_TYPE: tl.constexpr, COPY_TYPE: tl.constexpr, Y_TYPE: tl.constexpr, ITEMS: tl.constexpr, HAS_OK: tl.constexpr,
    HAS_COPY: tl.constexpr, HAS_ROWS: tl.constexpr, SHORTENS: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """``theta <- theta - (step row_scale y + shrink theta)`` of weights, and without rows of biases."""
    if HAS_OK:  # noqa: SIM102 - known when the kernel is compiled
        if tl.load(ok_ptr) == 0:
            return
    item, number = item_of(table_ptr, tl.program_id(0), ITEMS)
    begin = offset64(number, PIECE)
    lane = tl.arange(0, PIECE)
    there = lane < left_of(table_ptr, item, begin, ITEMS, ALIGNED, PIECE)
    step, shrink = lengths(table_ptr, item, rates_ptr, scales_ptr, shorter_ptr, ITEMS, SHORTENS)
    theta_ptr = address(table_ptr, item, THETA, ITEMS, FIELDS, THETA_TYPE, ALIGNED) + begin + lane
    old = tl.load(theta_ptr, mask=there, other=0.0).to(tl.float32)
    y_ptr = address(table_ptr, item, Y, ITEMS, FIELDS, Y_TYPE, ALIGNED) + begin + lane
    moved = tl.load(y_ptr, mask=there, other=0.0).to(tl.float32)
    if HAS_ROWS:
        width = field(table_ptr, item, WIDTH, ITEMS, FIELDS)
        first = begin // width
        # In int32: of rows longer than two pieces, a piece meets one end at most.
        short = tl.minimum(width, 2 * PIECE).to(tl.int32)
        left = tl.minimum(width - (begin - first * width), 2 * PIECE).to(tl.int32)
        row = (short - left + lane) // short
        rows_ptr = address(table_ptr, item, ROW_SCALES, ITEMS, FIELDS, tl.float32, False) + first
        scale = tl.load(rows_ptr + row, mask=there, other=0.0)
        # Not 0 times a direction that may be NaN. In this order: a direction may be tiny, and its row's scale huge.
        moved = tl.where(scale == 0.0, 0.0, scale * moved)
    moved = tl.where(step == 0.0, 0.0, step * moved)
    fresh = old - (moved + shrink * old)
    tl.store(theta_ptr, fresh.to(THETA_TYPE), mask=there)
    if HAS_COPY:
        copy_ptr = address(table_ptr, item, COPY, ITEMS, FIELDS, COPY_TYPE, ALIGNED) + begin + lane
        tl.store(copy_ptr, fresh.to(COPY_TYPE), mask=there)


@triton.jit
def move_others_kernel(
    table_ptr, rates_ptr, scales_ptr, shares_ptr, corrections_ptr, finite_ptr, ok_ptr, keep, add, take, weight, rest, epsilon,
    THETA_TYPE: tl.constexpr, COPY_TYPE: tl.constexpr, Y_TYPE: tl.constexpr, ITEMS: tl.constexpr, HAS_OK: tl.constexpr,
    HAS_COPY: tl.constexpr, HAS_FINITE: tl.constexpr, TAKES: tl.constexpr, LIGHT: tl.constexpr, ALIGNED: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Adam's rule with the updates of both averages. ``weight`` is the share of the new square, ``LIGHT`` where below 1/2."""
    if HAS_OK:  # noqa: SIM102 - known when the kernel is compiled
        if tl.load(ok_ptr) == 0:
            return
    item, number = item_of(table_ptr, tl.program_id(0), ITEMS)
    begin = offset64(number, PIECE)
    lane = tl.arange(0, PIECE)
    there = lane < left_of(table_ptr, item, begin, ITEMS, ALIGNED, PIECE)
    step, shrink = lengths(table_ptr, item, rates_ptr, scales_ptr, scales_ptr, ITEMS, False)
    other = field(table_ptr, item, NUMBER, ITEMS, FIELDS)
    share = tl.load(shares_ptr + other).to(tl.float32)
    back = 1.0 / tl.load(corrections_ptr + other).to(tl.float32)
    theta_ptr = address(table_ptr, item, THETA, ITEMS, FIELDS, THETA_TYPE, ALIGNED) + begin + lane
    gradient_ptr = address(table_ptr, item, Y, ITEMS, FIELDS, Y_TYPE, ALIGNED) + begin + lane
    average_ptr = address(table_ptr, item, AVERAGE, ITEMS, FIELDS, tl.float32, ALIGNED) + begin + lane
    square_ptr = address(table_ptr, item, SQUARE, ITEMS, FIELDS, tl.float32, ALIGNED) + begin + lane
    old = tl.load(theta_ptr, mask=there, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_ptr, mask=there, other=0.0).to(tl.float32)
    average = keep * tl.load(average_ptr, mask=there, other=0.0) + add * gradient
    square = tl.load(square_ptr, mask=there, other=0.0)
    cut = squarable(gradient)
    difference = cut * cut - square
    if LIGHT:
        square += weight * difference
    else:  # the form that ends at the new value exactly where the weight is 1
        square = cut * cut - difference * rest
    tl.store(average_ptr, average, mask=there)
    tl.store(square_ptr, square, mask=there)
    direction = squarable(ahead(average, gradient, share, take, TAKES)) / (tl.sqrt(square * back) + epsilon)
    good = direction - direction == 0.0  # neither NaN nor infinite
    direction = tl.where(good, direction, 0.0)
    fresh = old - (step * direction + shrink * old)
    tl.store(theta_ptr, fresh.to(THETA_TYPE), mask=there)
    if HAS_COPY:
        copy_ptr = address(table_ptr, item, COPY, ITEMS, FIELDS, COPY_TYPE, ALIGNED) + begin + lane
        tl.store(copy_ptr, fresh.to(COPY_TYPE), mask=there)
    if HAS_FINITE:
        bad = tl.sum((there & (good == 0)).to(tl.int32), 0)
        tl.store(finite_ptr + other, 0, mask=bad > 0)  # by any number of programs


class Kind(NamedTuple):
    """The properties that parameters of one launch have in common."""

    is_other: bool
    has_rows: bool
    theta: torch.dtype
    copy: torch.dtype | None
    y: torch.dtype
    aligned: bool


def launch_moves(entries: Sequence[Entry], numbers: Numbers) -> None:
    """Move parameters that the kernels take. The numbers are :meth:`Numbers.on_device`."""
    of_groups = [number if tensor is None else tensor for number, tensor in (*numbers.lr, *numbers.weight_decay)]
    rates, places = rates_on_device(of_groups, numbers.scales.device)
    of_lr, of_decay = places[: len(numbers.lr)], places[len(numbers.lr) :]
    kinds: dict[Kind, list[tuple[int, ...]]] = {}
    for entry in entries:
        if entry.param.numel() == 0:
            continue
        kind, fields = _described(entry, of_lr[entry.group], of_decay[entry.group])
        kinds.setdefault(kind, []).append(fields)
    made = Launches()
    for kind, rows in kinds.items():
        for first in range(0, len(rows), MOST_ITEMS):
            _add(made, kind, rows[first : first + MOST_ITEMS], numbers, rates)
    made.make(numbers.scales.device)


def _add(made: Launches, kind: Kind, rows: Sequence[tuple[int, ...]], numbers: Numbers, rates: Tensor) -> None:
    device = numbers.scales.device
    table = table_of(rows, [-(-row[ENTRIES.value] // PIECE) for row in rows], device)
    ok = table.numbers if numbers.ok is None else numbers.ok.view(torch.uint8)
    common = {
        "THETA_TYPE": TYPES[kind.theta], "COPY_TYPE": TYPES[kind.copy or kind.theta], "Y_TYPE": TYPES[kind.y],
        "ITEMS": table.items, "HAS_OK": numbers.ok is not None, "HAS_COPY": kind.copy is not None, "ALIGNED": kind.aligned,
        "PIECE": PIECE, "num_warps": 8,
    }  # fmt: skip
    if kind.is_other:
        assert numbers.shares is not None
        assert numbers.corrections is not None
        beta, take, b_others, epsilon = map(float, numbers.rule)
        finite = ok if numbers.finite is None else numbers.finite.view(torch.uint8)
        made.add(
            move_others_kernel, table.programs,
            table.numbers, rates, numbers.scales, numbers.shares, numbers.corrections, finite, ok, beta, 1.0 - beta,
            take, 1.0 - b_others, b_others, epsilon,
            HAS_FINITE=numbers.finite is not None, TAKES=take != 0, LIGHT=1.0 - b_others < 0.5, **common,
        )  # fmt: skip
        return
    shortens = kind.has_rows and numbers.shorter is not None
    made.add(
        move_layers_kernel, table.programs,
        table.numbers, rates, numbers.scales, numbers.scales if numbers.shorter is None else numbers.shorter, ok,
        HAS_ROWS=kind.has_rows, SHORTENS=shortens, **common,
    )  # fmt: skip


def _described(entry: Entry, lr: int, decay: int) -> tuple[Kind, tuple[int, ...]]:
    param, master, y, row_scales, average, square, place, number, _ = entry
    copy = None if master is None else param
    named = {"thetas": entry.theta, "params": copy, "directions and gradients": y, "row_scales": row_scales,
             "averages": average, "squares": square}  # fmt: skip
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in named.values()]
    for (name, tensor), own in zip(named.items(), addresses, strict=True):
        if tensor is not None:
            require_aligned(name, own, tensor.numel(), tensor.element_size())
    aligned = param.numel() % 8 == 0 and all(own % 16 == 0 for own in (*addresses[:3], *addresses[4:]))
    width = 1 if row_scales is None else width_of(param)
    kind = Kind(
        average is not None,
        row_scales is not None,
        entry.theta.dtype,
        None if copy is None else copy.dtype,
        y.dtype,
        aligned,
    )
    return kind, (*addresses, param.numel(), width, place, number, lr, decay)
