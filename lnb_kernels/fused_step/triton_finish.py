"""The pass between directions and moved weights, for all layers in one launch: a program for each layer.

It adds up the sums of the layer's rows, finds their scales and its bias's direction, and at last how far the layer goes, by the
rules of ``csrc/step_rules.h``, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lnb_kernels._captured import device_constants
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.tables import MOST_ITEMS, address, bits_of, field, table_of
from lnb_kernels._writes import require_aligned
from lnb_kernels.fused_step.layers import FinishArguments, FinishLayer, Place, places_of
from lnb_kernels.fused_step.triton_direct import SUMS, TYPES, ahead
from lnb_kernels.step_tables import DATA_BIAS, HELD, MOST_COHERENCE, PLAIN_COHERENCE, RECOVERING, StepSettings

FIELDS = tl.constexpr(11)
BIAS_MOMENTUM, BIAS_DIRECTION, BIAS_GRADIENT, FIRST_ROW, FIRST_ENTRY, ROWS = map(tl.constexpr, range(6))
COLUMN_BLOCKS, SLOT, STEP, USUAL_NORM, RATE = map(tl.constexpr, range(6, 11))
MOST_SQUARE = tl.constexpr(2.0**768)
"""The mean square of a row's gradients stays below the largest float64 to the power 3/4: an infinite one would never end."""

LEAST = tl.constexpr(2.0**-1022)
"""The least normal float64."""

INFINITY, ROOT_OF_3 = tl.constexpr(math.inf), tl.constexpr(math.sqrt(3))
ROWS_AT_ONCE = 512
MOST_COHERENT, PLAIN_COHERENT = tl.constexpr(MOST_COHERENCE), tl.constexpr(PLAIN_COHERENCE)
GROWS, GROWS_MOST, GROWS_MOST_TO, GROWS_TO = map(tl.constexpr, RECOVERING)
HELD_BY_OTHERS, OF_DATA = tl.constexpr(HELD), tl.constexpr(DATA_BIAS)


@triton.jit
def is_finite(value):
    """Whether it is neither NaN nor infinite."""
    return tl.abs(value) < INFINITY


@triton.jit
def finish_kernel(
    table_ptr, settings_ptr, rates_ptr, row_scales_ptr, row_square_ptr, independent_ptr, growth_ptr, radius_ptr, coherence_ptr,
    sums_ptr, scales_ptr, products_ptr, weight_norm_ptr, shorter_ptr, partials_ptr, mixed_ptr, sizes_ptr, steps_ptr,
    bias_shares_ptr, norms_ptr, ok_ptr, keep, add, take,
    G: tl.constexpr, ITEMS: tl.constexpr, HAS_OK: tl.constexpr, HAS_NORMS: tl.constexpr, TAKES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """See :func:`lnb_kernels.fused_step.finish_layers_`; ``settings`` as :func:`_settings` has them, one program per layer."""
    item = tl.program_id(0)
    rows = field(table_ptr, item, ROWS, ITEMS, FIELDS)
    if HAS_OK:  # noqa: SIM102 - known when the kernel is compiled
        if tl.load(ok_ptr) == 0:
            return
    slot = field(table_ptr, item, SLOT, ITEMS, FIELDS)
    first_row = field(table_ptr, item, FIRST_ROW, ITEMS, FIELDS)
    column_blocks = field(table_ptr, item, COLUMN_BLOCKS, ITEMS, FIELDS)
    biases = field(table_ptr, item, BIAS_GRADIENT, ITEMS, FIELDS)
    biased = biases != 0
    gradient_ptr = biases.to(tl.pointer_type(G))
    momentum_ptr = address(table_ptr, item, BIAS_MOMENTUM, ITEMS, FIELDS, tl.float32, False)
    direction_ptr = address(table_ptr, item, BIAS_DIRECTION, ITEMS, FIELDS, tl.float32, False)
    partials_ptr += field(table_ptr, item, FIRST_ENTRY, ITEMS, FIELDS)
    share = tl.load(bias_shares_ptr + slot, mask=biased, other=0.0).to(tl.float32)
    t = tl.load(steps_ptr + field(table_ptr, item, STEP, ITEMS, FIELDS)).to(tl.float64)
    t = tl.where(t < 1.0, 1.0, t)
    input_size = tl.load(sizes_ptr + slot)
    counted = tl.where(input_size > 0.0, OF_DATA, 1.0)  # of the bias's squares
    b_rows = tl.load(settings_ptr)
    correction = 1.0 - tl.exp(t * tl.load(settings_ptr + 1))

    zero = tl.zeros((BLOCK,), tl.float64)
    products = zero
    lengths = zero
    free_lengths = zero
    average_squares = zero
    squares = zero
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        there = row < rows
        product = zero
        length = zero
        along_mean = zero
        gain = zero
        average_square = zero
        square = zero
        for block in range(column_blocks):
            of_block = partials_ptr + (offset64(block, rows) + row) * SUMS
            product += tl.load(of_block, mask=there, other=0.0)
            length += tl.load(of_block + 1, mask=there, other=0.0)
            along_mean += tl.load(of_block + 2, mask=there, other=0.0)
            gain += tl.load(of_block + 3, mask=there, other=0.0)
            average_square += tl.load(of_block + 4, mask=there, other=0.0)
            square += tl.load(of_block + 5, mask=there, other=0.0)
        with_bias = there & biased
        gradient = tl.load(gradient_ptr + row, mask=with_bias, other=0.0).to(tl.float32)
        average = keep * tl.load(momentum_ptr + row, mask=with_bias, other=0.0) + add * gradient
        tl.store(momentum_ptr + row, average, mask=with_bias)
        bias = ahead(average, gradient, share, take, TAKES).to(tl.float64)
        mixed = tl.load(mixed_ptr + first_row + row, mask=with_bias, other=0.0)
        product += mixed * mixed
        average_square += counted * bias * bias
        square += counted * gradient.to(tl.float64) * gradient.to(tl.float64)
        square = tl.where(square > MOST_SQUARE, MOST_SQUARE, square)
        kept = tl.load(row_square_ptr + first_row + row, mask=there, other=0.0)
        kept += (1.0 - b_rows) * (square - kept)
        tl.store(row_square_ptr + first_row + row, kept, mask=there)
        mean_square = tl.maximum(kept / correction, square)
        free = tl.where(product > 0.0, 1.0 / tl.sqrt(tl.where(product > 0.0, product, 1.0)), 0.0)
        ratio = tl.where(mean_square > 0.0, average_square / tl.where(mean_square > 0.0, mean_square, 1.0), 0.0)
        ratio = tl.sqrt(tl.where(ratio > 1.0, 1.0, ratio))
        scale = free * ratio
        tl.store(row_scales_ptr + first_row + row, scale.to(tl.float32), mask=there)
        of_bias = (mixed - along_mean) * scale
        tl.store(direction_ptr + row, of_bias.to(tl.float32), mask=with_bias)
        products += scale * gain + tl.where(with_bias, of_bias * bias, 0.0)
        lengths += scale * scale * length
        free_lengths += free * free * length
        average_squares += average_square
        squares += tl.where(there, square, 0.0)
    product = tl.sum(products, 0)
    length = tl.sum(lengths, 0)
    free_length = tl.sum(free_lengths, 0)
    average_square = tl.sum(average_squares, 0)
    square = tl.sum(squares, 0)
    tl.store(sums_ptr + 4 * slot, product)
    tl.store(sums_ptr + 4 * slot + 1, length)
    tl.store(sums_ptr + 4 * slot + 2, free_length)
    tl.store(sums_ptr + 4 * slot + 3, average_square)
    tl.store(products_ptr + slot, product)

    # |g~|^2, were all gradients independent.
    b = tl.load(settings_ptr + 2)
    past = tl.load(independent_ptr + slot) * b * b
    tl.store(independent_ptr + slot, past + (1.0 - b) * (1.0 - b) * square)
    of_gradient = tl.load(settings_ptr + 4)
    of_average = tl.where(of_gradient != 0.0, b, 1.0) / (1.0 - tl.exp(t * tl.load(settings_ptr + 3)))
    own = of_average * (1.0 - b) + of_gradient
    expected = of_average * of_average * past + own * own * square

    rate = tl.load(rates_ptr + field(table_ptr, item, RATE, ITEMS, FIELDS))
    norm = tl.load(weight_norm_ptr + slot)
    growth = tl.load(growth_ptr + slot)
    former = tl.load(radius_ptr + slot)
    coherence = tl.load(coherence_ptr + slot)
    floor = tl.load(settings_ptr + 16)
    shorter = 1.0
    if HAS_NORMS:
        measured = tl.load(norms_ptr + slot)
        moving = (measured >= 0.0) & (norm > 0.0) & is_finite(product)
        moving = moving & is_finite(free_length) & (free_length != 0.0) & (rate != 0.0)
        walked = 2.0 * growth
        longer = measured / tl.where(moving, norm, 1.0)
        turned = (walked > tl.load(settings_ptr + 20)) & (t > tl.load(settings_ptr + 21) + 1.0)
        drift = tl.abs(longer * longer - 1.0)
        turned = turned & (drift < tl.load(settings_ptr + 19) * walked) & (drift > walked * HELD_BY_OTHERS) & moving
        former = tl.where(turned & (former > floor), floor, former)
        coherence = tl.where(turned, 0.0, coherence)
        shorter = tl.where(moving, 1.0 / tl.sqrt(1.0 + walked), 1.0)
        growth = tl.where(moving, 0.0, growth)
        norm = tl.where(measured >= 0.0, measured * shorter, norm)
        tl.store(weight_norm_ptr + slot, norm)
    tl.store(shorter_ptr + slot, shorter)

    usual = field(table_ptr, item, USUAL_NORM, ITEMS, FIELDS).to(tl.float64, bitcast=True)
    norm = tl.where(norm < usual, usual, norm)
    size = input_size / ROOT_OF_3
    size = tl.where(is_finite(size) & (size > 1.0), size, 1.0)
    scale = tl.where(is_finite(product), size, 0.0)
    free_length = scale * tl.sqrt(tl.where(is_finite(free_length), free_length, 0.0))
    free_length = tl.where(free_length < LEAST, LEAST, free_length)
    change = tl.load(settings_ptr + 5)
    limit = tl.load(settings_ptr + 6) / rate
    share_of_norm = tl.where(limit < change, limit, change) * norm / free_length
    scale *= tl.where(share_of_norm < 1.0, share_of_norm, 1.0)
    average_square = tl.where(is_finite(average_square), average_square, 0.0)
    radius = former * tl.load(settings_ptr + 9)

    # Coherence.
    coherent = tl.where(expected > 0.0, average_square / tl.where(expected > 0.0, expected, 1.0), 0.0)
    coherent = tl.where(coherent > MOST_COHERENT, MOST_COHERENT, coherent)
    coherence += (1.0 - tl.load(settings_ptr + 11)) * (coherent - coherence)
    tl.store(coherence_ptr + slot, coherence)
    mean = coherence / (1.0 - tl.exp(t * tl.load(settings_ptr + 12)))
    quiet = tl.load(settings_ptr + 13)
    loud = tl.load(settings_ptr + 14)
    agreed = (mean - loud) / (PLAIN_COHERENT - loud)
    after = former * (1.0 + (tl.load(settings_ptr + 9) - 1.0) * tl.where(agreed > 1.0, 1.0, agreed))
    rising = (mean - GROWS) / (GROWS_MOST - GROWS)
    falling = (GROWS_TO - mean) / (GROWS_TO - GROWS_MOST_TO)
    recovering = tl.where(rising < falling, rising, falling)
    recovering = tl.where(recovering > 1.0, 1.0, recovering)
    recovering = tl.where((recovering < 0.0) | (input_size > 0.0), 0.0, recovering)
    recovery = 1.0 + (tl.load(settings_ptr + 18) - 1.0) * recovering
    after = tl.where(mean < loud, former * recovery, after)
    calmed = former * tl.load(settings_ptr + 15)
    towards = tl.where(radius < floor, radius, floor)
    calmed = tl.where(calmed < towards, towards, calmed)
    after = tl.where((mean > quiet) & (mean < loud), calmed, after)
    span = loud - quiet
    opened = tl.where(mean < loud, (mean - quiet) / tl.where(span > 0.0, span, 1.0), 1.0)
    opening = former * (1.0 + (tl.load(settings_ptr + 9) - 1.0) * tl.where(opened > 0.0, opened, 0.0))
    radius = tl.where(t > tl.load(settings_ptr + 17), after, opening)
    opposed = average_square < tl.load(settings_ptr + 7) * expected
    shrunk = former * tl.load(settings_ptr + 8)
    held = tl.where(former < floor, former, floor)
    shrunk = tl.where(shrunk < held, held, shrunk)
    radius = tl.where(opposed, shrunk, radius)
    least = tl.load(settings_ptr + 10)
    radius = tl.where(radius < least, least, radius)
    radius = tl.where(radius > 1.0, 1.0, radius)
    scale *= radius
    relative = rate * scale / norm
    grown = 0.5 * tl.where(is_finite(length), length, 0.0) * relative * relative
    tl.store(growth_ptr + slot, growth + tl.where(is_finite(grown), grown, 0.0))
    tl.store(radius_ptr + slot, radius)
    tl.store(scales_ptr + slot, scale)


def launch_finish(layers: Sequence[FinishLayer], given: FinishArguments) -> None:
    """Finish layers whose biases are dense, and of float32 and one dtype of gradients."""
    device, partials, settings, ok = given.partials.device, given.partials, given.settings, given.ok
    rates, of_rates = rates_on_device([layer.rate for layer in layers], device)
    gradients = [layer.bias_gradient.dtype for layer in layers if layer.bias_gradient is not None]
    rows = [_fields(*each) for each in zip(layers, places_of(layers), of_rates, strict=True)]
    take = 1.0 - settings.momentum if settings.nesterov else 0.0
    for first in range(0, len(rows), MOST_ITEMS):
        own = rows[first : first + MOST_ITEMS]
        table = table_of(own, [1] * len(own), device)
        finish_kernel[(table.programs,)](
            table.numbers, _settings(settings, device), rates, *vars(given.numbers).values(), partials, given.mixed_biases,
            given.input_size, given.steps, partials if given.bias_shares is None else given.bias_shares,
            partials if given.norms is None else given.norms, table.numbers if ok is None else ok.view(torch.uint8),
            float(settings.momentum), 1.0 - settings.momentum, take,
            G=TYPES[gradients[0] if gradients else torch.float32], ITEMS=table.items, HAS_OK=ok is not None,
            HAS_NORMS=given.norms is not None, TAKES=take != 0, BLOCK=ROWS_AT_ONCE, num_warps=8, num_stages=1,
        )  # fmt: skip


def rates_on_device(rates: Sequence[float | Tensor], device: torch.device) -> tuple[Tensor, list[int]]:
    """Different rates side by side, float64, and the place of each there. Numbers are parameters of launches, not copies."""
    parts: list[Tensor] = []
    places: dict[tuple[str, float], int] = {}
    of_rates = []
    for rate in rates:
        tensor = isinstance(rate, Tensor)
        key = ("tensor", id(rate)) if tensor else ("number", float(rate))
        if key not in places:
            places[key] = len(parts)
            wide = rate.to(torch.float64) if isinstance(rate, Tensor) else None
            parts.append(torch.full((), float(rate), dtype=torch.float64, device=device) if wide is None else wide)
        of_rates.append(places[key])
    return torch.stack(parts), of_rates


def _fields(layer: FinishLayer, place: Place, rate: int) -> tuple[int, ...]:
    biases = {
        "bias_momentum": layer.bias_momentum, "bias_directions": layer.bias_direction, "bias_gradients": layer.bias_gradient,
    }  # fmt: skip
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in biases.values()]
    for (name, tensor), number in zip(biases.items(), addresses, strict=True):
        if tensor is not None:
            require_aligned(name, number, tensor.numel(), tensor.element_size())
    return (
        *addresses, place.row, place.entry, layer.rows, layer.column_blocks, place.slot, layer.step,
        bits_of(layer.usual_norm), rate,
    )  # fmt: skip


@device_constants(maxsize=16)
def _settings(settings: StepSettings, device: torch.device) -> Tensor:
    """The numbers of the rules as the kernel reads them, with the logarithms of decays, of which it takes powers."""

    def log(value: float) -> float:
        return math.log(value) if value > 0 else -math.inf

    rule = settings.radius
    values = (
        settings.b_rows, log(settings.b_rows), settings.momentum, log(settings.momentum),
        1 - settings.momentum if settings.nesterov else 0.0, settings.change, settings.largest, rule.opposed, rule.shrink,
        rule.grow, rule.least, rule.b_coherence, log(rule.b_coherence), rule.quiet, rule.loud, rule.calm, rule.floor,
        rule.opening, rule.recover, rule.turning, rule.telling, rule.interval,
    )  # fmt: skip
    return torch.tensor(values, dtype=torch.float64, device=device)
