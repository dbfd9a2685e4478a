"""The two ops in plain PyTorch: the executable specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels.fused_step.layers import (
    SUMS,
    DirectArguments,
    DirectLayer,
    FinishArguments,
    FinishLayer,
    Numbers,
    Place,
    places_of,
)
from lnb_kernels.scaling import sum_dtype, unit_scale
from lnb_kernels.step_tables import (
    DATA_BIAS,
    HELD,
    MOST_COHERENCE,
    PLAIN_COHERENCE,
    RECOVERING,
    RadiusRule,
    StepSettings,
)
from lnb_kernels.two_sided.reference import agreement_of


@torch.no_grad()
def direct_layers_(layers: Sequence[DirectLayer], given: DirectArguments) -> None:
    """As :func:`lnb_kernels.fused_step.direct_layers_`; products are in the dtype of the averages, whatever the precision."""
    for layer, place in zip(layers, places_of(layers), strict=True):
        direct_layer_(layer, given.of_layer(layer, place))


def direct_layer_(layer: DirectLayer, own: DirectArguments) -> None:
    """One layer of :func:`direct_layers_`, given its part of what all layers share.

    Every tile, and every block of ``P^(-1/2)``, is brought to unit size by a power of two, which rounds nothing.
    """
    average = averaged(layer.momentum, layer.gradient, own.decay)
    ahead = looking_ahead(average, layer.gradient, own.shares, own.take)
    side, size = layer.root.shape[-1], layer.inverse.shape[-1]
    gradient = _tiles(layer.gradient.to(average.dtype), side, size)
    tiles = _tiles(ahead, side, size)  # [..., row blocks, column blocks, side, size]
    diagonal = layer.root.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # where the largest entry of a positive matrix is
    root = (layer.root * unit_scale(diagonal)).unsqueeze(-3)  # [..., row blocks, 1, side, side]
    bias = mean = None
    if layer.bias_gradient is not None and layer.bias_momentum is not None and layer.mean is not None:
        assert own.bias_shares is not None
        of_bias = averaged(layer.bias_momentum, layer.bias_gradient, own.decay)
        of_bias = looking_ahead(of_bias, layer.bias_gradient, own.bias_shares, own.take)
        bias = of_bias.view(*layer.root.shape[:-1]).unsqueeze(-2).unsqueeze(-1)  # [..., row blocks, 1, side, 1]
        mean = layer.mean.unflatten(-1, (-1, size)).unsqueeze(-3).unsqueeze(-2)  # [..., 1, column blocks, 1, size]
    unit = unit_scale(tiles, None if bias is None else bias.expand(*tiles.shape[:-1], 1))
    centred = tiles * unit
    if bias is not None and mean is not None:
        centred = centred - (bias * unit) * mean
    mixed = root @ centred
    step = mixed @ layer.inverse.unsqueeze(-4)
    wide = sum_dtype(step.device)
    back = 1 / unit.to(wide).squeeze(-1)
    sums = torch.stack(
        [
            _dot(step, mixed) * back**2,
            _dot(step, step) * back**2,
            torch.zeros_like(step[..., 0], dtype=wide) if mean is None else _dot(step, mean.expand_as(step)) * back,
            _dot(step, tiles * unit) * back**2,
            _dot(tiles * unit, tiles * unit) * back**2,
            _dot(gradient, gradient),
        ],
        dim=-1,
    )  # [..., row blocks, column blocks, side, 6]
    blocks = layer.column_blocks
    if bias is not None:
        _keep(own.mixed_biases, (root @ bias).to(wide).flatten(), own.ok)
    _keep(own.partials, sums.movedim(-3, 0).reshape(blocks, layer.rows, SUMS).flatten(), own.ok)
    _keep(layer.momentum, average, own.ok)
    _keep(layer.direction, _joined(step * (1 / unit), layer.direction.shape), own.ok)


def averaged(momentum: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """``b m + (1 - b) g``."""
    return momentum * decay + gradient.to(momentum.dtype).view_as(momentum) * (1 - decay)


def looking_ahead(average: Tensor, gradient: Tensor, share: Tensor, take: float) -> Tensor:
    """``g~ = share m + take g``. Not 0 times a gradient that may be NaN."""
    scaled = average * share.to(average.dtype)
    return scaled if take == 0 else scaled + gradient.to(average.dtype).view_as(average) * take


def _tiles(matrix: Tensor, side: int, size: int) -> Tensor:
    """``[..., m, d]`` as ``[..., m / side, d / size, side, size]``."""
    cut: Tensor = matrix.unflatten(-1, (-1, size)).unflatten(-3, (-1, side)).movedim(-2, -3)
    return cut


def _joined(tiles: Tensor, shape: torch.Size) -> Tensor:
    """The matrix that :func:`_tiles` cut."""
    return tiles.movedim(-3, -2).reshape(shape)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """The dot product of every pair of rows."""
    wide = sum_dtype(x.device)
    return (x.to(wide) * y.to(wide)).sum(-1)


def _keep(target: Tensor, fresh: Tensor, ok: Tensor | None) -> None:
    """``fresh`` to ``target``, where ``ok`` is None or True."""
    fresh = fresh.to(target.dtype).view_as(target)
    target.copy_(fresh if ok is None else torch.where(ok, fresh, target))


@torch.no_grad()
def finish_layers_(layers: Sequence[FinishLayer], given: FinishArguments) -> None:
    """As :func:`lnb_kernels.fused_step.finish_layers_`."""
    for layer, place in zip(layers, places_of(layers), strict=True):
        _finish_layer(layer, given, place)


def _finish_layer(layer: FinishLayer, given: FinishArguments, place: Place) -> None:
    """One layer of :func:`finish_layers_`."""
    slot, rows, settings, ok = place.slot, place.rows(layer), given.settings, given.ok
    rule = settings.radius
    row_scales, row_square, *of_layers = vars(given.numbers).values()
    own = Numbers(row_scales[rows], row_square[rows], *(values[slot] for values in of_layers))
    mixed_bias = given.mixed_biases[rows]
    partials = place.partials(given.partials, layer).view(layer.column_blocks, layer.rows, SUMS).sum(0)
    wide = partials.dtype
    product, square, along_mean, gain, average_square, gradient_square = partials.unbind(-1)
    t = given.steps[layer.step].to(wide).clamp(min=1)
    b, take = settings.momentum, 1 - settings.momentum if settings.nesterov else 0.0
    bias = None
    if layer.bias_gradient is not None and layer.bias_momentum is not None and layer.bias_direction is not None:
        assert given.bias_shares is not None
        momentum = averaged(layer.bias_momentum, layer.bias_gradient, b)
        ahead = looking_ahead(momentum, layer.bias_gradient, given.bias_shares[slot], take).flatten().to(wide)
        bias = layer.bias_direction, momentum, ahead
        product = product + mixed_bias.square()
        counted = bias_weights(given.input_size[slot])
        average_square = average_square + counted * ahead.square()
        gradient_square = gradient_square + counted * layer.bias_gradient.flatten().to(wide).square()
    fresh = gradient_square.clamp(max=torch.finfo(wide).max ** 0.75)  # an infinite mean square would never end
    next_square = own.row_square + (1 - settings.b_rows) * (fresh - own.row_square)
    mean_square = torch.maximum(next_square / (1 - settings.b_rows**t), fresh)
    free = torch.where(product > 0, product.rsqrt(), 0.0)
    row_scale = free * agreement_of(average_square, mean_square)
    total = (row_scale * gain).sum()
    if bias is not None:
        bias_direction = (mixed_bias - along_mean) * row_scale
        total = total + (bias_direction * bias[2]).sum()
    sums = torch.stack(
        [total, (row_scale.square() * square).sum(), (free.square() * square).sum(), average_square.sum()]
    )
    share = (b if settings.nesterov else 1.0) / (1 - b**t)
    past = own.independent * b**2
    independent = past + (1 - b) ** 2 * fresh.sum()
    expected = share.square() * past + (share * (1 - b) + take).square() * fresh.sum()
    rate = (
        layer.rate.to(wide) if isinstance(layer.rate, Tensor) else torch.tensor(layer.rate, dtype=wide, device=t.device)
    )
    norm, growth, shorter = own.weight_norm, own.growth, torch.ones_like(own.growth)
    radius, coherence = own.radius, own.coherence
    if given.norms is not None:
        measured = given.norms[slot]
        turned = turned_back((measured / norm).square(), growth, rule) & (t > rule.interval + 1)
        norm, growth, shorter, moving = taken_back(measured, norm, growth, sums, rate)
        radius = torch.where(moving & turned, radius.clamp(max=rule.floor), radius)
        coherence = torch.where(moving & turned, 0.0, coherence)
    sees_data = given.input_size[slot] > 0
    coherence, radius = next_radius(radius, coherence, sums[3], expected, t, sees_data, rule)
    scale, growth = bounded(sums, norm, growth, radius, layer.usual_norm, given.input_size[slot], rate, settings)
    if bias is not None and layer.bias_momentum is not None:
        _keep(bias[0], bias_direction, ok)
        _keep(layer.bias_momentum, bias[1], ok)
    fresh_numbers = Numbers(
        row_scale, next_square, independent, growth, radius, coherence, sums, scale, total, norm, shorter
    )
    for target, value in zip(vars(own).values(), vars(fresh_numbers).values(), strict=True):
        _keep(target, value, ok)


def bias_weights(input_size: Tensor) -> Tensor:
    """What the squares of a bias's gradients count where agreement is judged, by layer: :mod:`lnb.damping`."""
    return torch.where(input_size > 0, DATA_BIAS, 1.0).to(input_size.dtype)


def turned_back(squares: Tensor, growth: Tensor, rule: RadiusRule) -> Tensor:
    """Whether the steps of layers went back and forth since their norms were measured last, of which ``squares`` are those
    measured now over these, squared: :mod:`lnb.damping`."""
    walked, change = 2 * growth, (squares - 1).abs()
    return (walked > rule.telling) & (change < rule.turning * walked) & (change > HELD * walked)


def taken_back(
    measured: Tensor, norm: Tensor, growth: Tensor, sums: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer's norm and growth where its weights were measured, by what they are multiplied beside, and whether growth is
    taken back at all, ``[]`` each."""
    is_measured = measured >= 0
    moving = is_measured & (norm > 0) & sums[0].isfinite() & sums[2].isfinite() & (sums[2] != 0) & (rate != 0)
    shorter = torch.where(moving, (1 + 2 * growth).rsqrt(), 1.0)
    return torch.where(is_measured, measured * shorter, norm), torch.where(moving, 0.0, growth), shorter, moving


def next_radius(
    radius: Tensor,
    coherence: Tensor,
    average: Tensor,
    expected: Tensor,
    t: Tensor,
    sees_data: Tensor | None,
    rule: RadiusRule,
) -> tuple[Tensor, Tensor]:
    """The coherence and the radii of layers after their steps ``t``, floating: :func:`lnb.damping.radii`. All of one shape."""
    average = torch.where(average.isfinite(), average, 0.0)
    ratio = torch.where(expected > 0, average / expected, 0.0).clamp(max=MOST_COHERENCE)
    coherence = coherence + (1 - rule.b_coherence) * (ratio - coherence)
    mean = coherence / (1 - rule.b_coherence**t)
    agreed = ((mean - rule.loud) / (PLAIN_COHERENCE - rule.loud)).clamp(0, 1)
    below = radius * _recovery(mean, rule.recover, sees_data)
    after = torch.where(mean >= rule.loud, radius * (1 + (rule.grow - 1) * agreed), below)
    calmed = torch.maximum(radius * rule.calm, (radius * rule.grow).clamp(max=rule.floor))
    after = torch.where((mean > rule.quiet) & (mean < rule.loud), calmed, after)
    opened = torch.where(mean < rule.loud, (mean - rule.quiet) / (rule.loud - rule.quiet), 1.0).clamp(min=0)
    after = torch.where(t > rule.opening, after, radius * (1 + (rule.grow - 1) * opened))
    shrunk = torch.maximum(radius * rule.shrink, radius.clamp(max=rule.floor))
    after = torch.where(average < rule.opposed * expected, shrunk, after)
    return coherence, after.clamp(rule.least, 1.0)


def _recovery(coherence: Tensor, recover: float, sees_data: Tensor | None) -> Tensor:
    """The factor by which radii grow below the band of noise."""
    none, whole, last, end = RECOVERING
    share = torch.minimum((coherence - none) / (whole - none), (end - coherence) / (end - last)).clamp(0, 1)
    if sees_data is not None:
        share = torch.where(sees_data, 0.0, share)
    return 1 + (recover - 1) * share


def bounded(
    sums: Tensor,
    weight_norm: Tensor,
    growth: Tensor,
    radius: Tensor,
    usual_norm: float,
    input_size: Tensor,
    rate: Tensor,
    settings: StepSettings,
) -> tuple[Tensor, Tensor]:
    """What a layer's direction is multiplied by beside ``lr``, and its new growth, ``[]`` each.

    The step changes pre-activations by their usual size, where that is above 1, and is at most the share
    ``min(change, largest / rate)`` of the weights' norm per unit of ``lr``, times the radius.
    """
    damped, free = torch.where(sums.isfinite(), sums, 0.0)[1:3]
    norm = weight_norm.clamp(min=usual_norm)
    size = torch.where(input_size.isfinite(), input_size / math.sqrt(3), 0.0).clamp(min=1)
    scale = sums[0].isfinite() * size
    length = (scale * free.sqrt()).clamp(min=torch.finfo(sums.dtype).tiny)
    scale = scale * ((settings.largest / rate).clamp(max=settings.change) * norm / length).clamp(max=1)
    scale = scale * radius
    grown = 0.5 * damped * (rate * scale / norm).square()
    return scale, growth + torch.where(grown.isfinite(), grown, 0.0)
