"""GPTQ: weights rounded one after the other, each error made good by the weights that are still to come.

A row ``w`` is to be replaced by points ``q`` of a grid so that ``E ((w - q) x)^2 = (w - q) S (w - q)'`` is small, with
``S = E[x x']``. Optimal Brain Surgeon (Hassibi and Stork, 1993) gives one step: if weight ``i`` is moved to ``q_i``, the best
change of the other free weights ``F`` minimises a quadratic form under that constraint. With ``P = (S_FF)^-1`` and a
Lagrange multiplier it is

    ``delta_F = -(w_i - q_i) / P_ii  P_i,F``.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323) takes the columns in one order for all rows. Then ``P`` is needed for ``F = {i, i+1, ...}`` only,
and all of these are in one factor: with ``S^-1 = U' U``, ``U`` upper triangular, the trailing block of ``U`` is the factor of
``(S_FF)^-1``, because removing the first variable from ``S`` is a step of Gaussian elimination on ``S^-1``. So
``P_ii = U_ii^2`` and ``P_i,F = U_ii U_i,F``, and

    ``e = (w_i - q_i) / U_ii``,   ``w_j <- w_j - e U_ij`` for ``j > i``.

Errors of ``_CHUNK`` columns are passed on to later ones in one product, as the paper does. Where ``S`` is block-diagonal, so is
``U``, and an error never leaves its block: blocks are worked on side by side, which is exact.

Differences to the authors' code: computed in float64; an input that is always zero, whose weights have no effect, has them
rounded (theirs are set to zero); a group's grid is that of the original weights ("static groups"), so that ``act_order``
and blocks go with any ``group_size``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lnb.config import check_choice, check_number
from lnb.moments.collection import Moments
from lnb.moments.grid import Grid, Quantized, nearest_code, require_weight, round_to_nearest
from lnb.moments.naming import require_rows, unwrapped
from lnb.moments.record import LayerMoment, MissingMoment, require_moment
from lnb.moments.taps import taps_of

_CHUNK = 128
METHODS = ("gptq", "nearest")


def gptq(
    weight: Tensor,
    moment: LayerMoment,
    bits: int,
    group_size: int | None = None,
    damp: float = 0.01,
    act_order: bool = False,
) -> Quantized:
    """Quantise a weight by GPTQ.

    Args:
        weight: of the layer that ``moment`` is of: ``[d_out, d_in]``, a convolution's kernel, or a packed in-projection.
        moment: of the layer's inputs. With diagonal blocks, errors are made good within a block: exactly GPTQ by a
            block-diagonal matrix, which is less than it does with a full one. ``Quantized.blocks`` tells.
        bits: 1 to 8.
        group_size: weights of a row that share a grid; None for the whole row.
        damp: times the mean diagonal of the second moment is added to its diagonal, >= 0.
        act_order: take the columns by falling mean square of their inputs (within blocks) instead of from left to right.

    Returns:
        The weight on its grid. Compare ``error`` with ``rounding_error``: few bits leave cases in which rounding is better.

    Raises:
        TypeError, ValueError: an argument is not allowed, the moment is of another layer, or so nearly singular that no factor
            exists: then ``damp`` must be larger. Nothing falls back to rounding.
    """
    weight = require_weight(weight)
    moment = require_moment(moment)
    check_number("damp", damp, low=0.0)
    info = moment.info
    rows = info.matrix(weight).to("cpu", torch.float64)  # [groups, rows, d_in]
    matrix = rows.flatten(0, 1)
    grid = Grid.of(matrix, bits, group_size)
    scale, zero = (_cut(each, moment) for each in grid.expanded())
    square = moment.second_moment.to("cpu", torch.float64)
    start = _cut(matrix, moment)  # [groups, blocks, rows, size]
    order = square.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True) if act_order else None
    factor = _inverse_factor(_permuted(square, order, both=True), damp, info.name)
    ordered = [_permuted(each, order) for each in (start, scale, zero)]
    codes = _by_columns(ordered[0], ordered[1], ordered[2], factor, bits)
    if order is not None:
        codes = _permuted(codes, order.argsort(dim=-1))
    found = grid.quantized(_joined(codes), weight)
    rounded = nearest_code(start, scale, zero, bits)
    return dataclasses.replace(
        found,
        blocks=info.blocks,
        error=_error(start - scale * (codes - zero), square),
        rounding_error=_error(start - scale * (rounded - zero), square),
    )


def quantize(
    model: nn.Module,
    moments: Moments,
    bits: int,
    *,
    method: str = "gptq",
    layers: Iterable[str] | None = None,
    group_size: int | None = None,
    damp: float = 0.01,
    act_order: bool = False,
) -> dict[str, Quantized]:
    """Put the weights of a model's layers on grids, in place; biases and other parameters stay.

    Every layer is quantised by the moments of the model as it was. Nothing is written before all layers are done.

    Args:
        model: that the moments are of.
        moments: of its layers.
        bits, group_size, damp, act_order: as of :func:`gptq`.
        method: ``"gptq"``, or ``"nearest"`` for rounding alone.
        layers: names of layers; None for all that have moments, an error if a layer of the model has none.

    Returns:
        What each layer's weight became, by the layer's name.

    Raises:
        MissingMoment: a layer has no moment.
        TypeError, ValueError: as of :func:`gptq`, or the moments are of another model.
    """
    check_choice("method", method, METHODS)
    if not isinstance(moments, Moments):
        raise TypeError(f"moments must be a Moments, not {type(moments).__name__}")
    if isinstance(layers, str):
        raise TypeError(f"layers={layers!r} must be a list of names, not a str")
    names = [tap.name for tap, _ in taps_of(unwrapped(model))] if layers is None else list(layers)
    missing = [name for name in names if name not in moments]
    if missing:
        reason = moments.absent.get(missing[0], "they are of another model, or were gathered without it")
        raise MissingMoment(
            f"moments: layers {missing} of the model have none ({reason}); gather them, or name the layers to "
            f"quantise: layers=[...]"
        )
    weights = {name: moments.parameter(model, name) for name in names}
    for name in names:
        require_rows(unwrapped(model), name, moments.infos[name].parameter)
    found: dict[str, Quantized] = {}
    for name, weight in weights.items():
        if method == "gptq":
            found[name] = gptq(weight, moments[name], bits, group_size, damp, act_order)
        else:
            found[name] = round_to_nearest(weight, bits, group_size)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(found[name].weight)
    return found


def _cut(matrix: Tensor, moment: LayerMoment) -> Tensor:
    """``[d_out, d_in]`` as ``[groups, blocks, d_out / groups, size]``."""
    info = moment.info
    return matrix.view(info.groups, -1, info.blocks, info.size).transpose(1, 2)


def _joined(blocks: Tensor) -> Tensor:
    """The inverse of :func:`_cut`."""
    return blocks.transpose(1, 2).flatten(2).flatten(0, 1)


def _permuted(values: Tensor, order: Tensor | None, both: bool = False) -> Tensor:
    """Columns ``[groups, blocks, .., size]``, and with ``both`` rows too, in an order ``[groups, blocks, size]``."""
    if order is None:
        return values
    columns = values.gather(-1, order.unsqueeze(-2).expand_as(values))
    return columns.gather(-2, order.unsqueeze(-1).expand_as(values)) if both else columns


def _inverse_factor(square: Tensor, damp: float, name: str) -> Tensor:
    """Upper triangular ``U`` with ``(S + damp mean(diag S))^-1 = U' U``, ``[groups, blocks, size, size]``."""
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean((-2, -1), keepdim=True)  # of all blocks: as of the block-diagonal matrix in one
    damped = diagonal + damp * mean
    matrix = square.clone()
    matrix.diagonal(dim1=-2, dim2=-1).copy_(torch.where(damped > 0, damped, 1.0))  # inputs that are always zero
    lower, failed = torch.linalg.cholesky_ex(matrix)
    upper: Tensor
    upper, failed_again = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if bool((failed != 0).any() or (failed_again != 0).any()) or not bool(torch.isfinite(upper).all()):
        raise ValueError(
            f"layer {name!r}: its second moment is not positive definite with damp={damp!r}; raise damp (0.01 is "
            f"usual), or gather "
            f"moments of more samples"
        )
    return upper


def _by_columns(weight: Tensor, scale: Tensor, zero: Tensor, factor: Tensor, bits: int) -> Tensor:
    """The codes, column after column; all ``[groups, blocks, rows, size]``, but ``factor`` ``[groups, blocks, "
    "size, size]``."""
    left = weight.clone()
    codes = torch.empty_like(left)
    size = left.shape[-1]
    for begin in range(0, size, _CHUNK):
        end = min(begin + _CHUNK, size)
        errors = torch.empty_like(left[..., begin:end])
        for i in range(begin, end):
            column = left[..., i]
            codes[..., i] = nearest_code(column, scale[..., i], zero[..., i], bits)
            point = scale[..., i] * (codes[..., i] - zero[..., i])
            error = (column - point) / factor[..., i, i].unsqueeze(-1)
            left[..., i:end] -= error.unsqueeze(-1) * factor[..., i, i:end].unsqueeze(-2)
            errors[..., i - begin] = error
        left[..., end:] -= errors @ factor[..., begin:end, end:]
    return codes


def _error(difference: Tensor, square: Tensor) -> float:
    """``tr(D S D')`` summed over groups and blocks."""
    return float(((difference @ square) * difference).sum())
