"""The op ``lnb_kernels::two_sided_directions_``: schema, fake and dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels._library import define_in_place
from lnb_kernels._writes import require_one_kind
from lnb_kernels.scaling import sum_dtype
from lnb_kernels.two_sided import reference

_backend.register(
    "two_sided_directions_",
    reference.two_sided_directions_,
    native="lnb_kernels.two_sided.native_kernel:two_sided_directions_",
)


def _kernel(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    inverses: Sequence[Tensor],
    means: Sequence[Tensor | None],
    roots: Sequence[Tensor],
    squares: Sequence[Tensor],
    bias_weights: Tensor | None = None,
) -> Tensor:
    # A schema has no list of optional tensors that are written: there is a bias where there is a mean.
    given = iter(biases)
    of_layers = [None if mean is None else next(given) for mean in means]
    of_rows: Sequence[Tensor | None] = squares or [None] * len(weights)
    counted: Sequence[Tensor | None] = [None] * len(weights) if bias_weights is None else bias_weights.unbind()
    layers = list(zip(weights, of_layers, inverses, means, roots, of_rows, counted, strict=True))
    with _autocast.disabled(weights[0].device):
        sums: Tensor = _backend.call("two_sided_directions_", weights[0], layers)
    return sums


def _fake(weights: Sequence[Tensor], *_: object) -> Tensor:
    matrices = sum(weight.shape[:-2].numel() for weight in weights)
    return weights[0].new_empty(matrices, 4, dtype=sum_dtype(weights[0].device))


_two_sided_directions_ = define_in_place(
    "two_sided_directions_(Tensor(a!)[] weights, Tensor(b!)[] biases, Tensor[] inverses, Tensor?[] means, Tensor[] roots, "
    "Tensor[] squares, Tensor? bias_weights=None) -> Tensor",
    _kernel,
    _fake,
    writes=2,
)


def two_sided_directions_(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    inverses: Sequence[Tensor],
    means: Sequence[Tensor | None],
    roots: Sequence[Tensor],
    squares: Sequence[Tensor] | None = None,
    bias_weights: Tensor | None = None,
) -> Tensor:
    """Directions whose every row has unit size in the layer's metric, of a whole model in one call, in place.

    Of a layer with averaged gradient ``W`` of the weight and ``b`` of the bias, inputs of mean ``mu`` and covariance ``C``, and
    ``P`` the second moment of its neurons' whitened gradients, with ``M = P^(-1/2) (W - b mu')`` and ``c = P^(-1/2) b``:

        ``H = M C^-1``,  ``h = c - H mu``,  then row by row  ``(H, h) / sqrt(<H, M> + c^2)``

    and with ``squares`` times the agreement of the row's gradients, ``min(1, sqrt((||W_i||^2 + w b_i^2) / squares_i))``. A row
    is zero where what it is divided by is not positive; ``H`` takes the place of ``W``, and ``h`` that of ``b``. The size of
    ``W`` and ``b`` does not matter, from the least numbers of the dtype to the largest, nor does that of ``P``. Each layer has
    leading dimensions ``...`` of its own, of independent matrices.
    On CPUs the blocks of all layers are shared out to the threads at once.

    Args:
        weights: per layer ``W``, ``[..., m, d]``, floating point, all on one device; overwritten.
        biases: per layer ``b``, ``[..., m, 1]``, overwritten; or None.
        inverses: the diagonal blocks of ``C^-1``, ``[..., d / size, size, size]``.
        means: ``mu``, ``[..., d]``; None where there is no bias.
        roots: the diagonal blocks of ``P^(-1/2)``, ``[..., m / side, side, side]``.
        squares: per layer the mean square of each row's gradients (weight and bias together), ``[..., m]``, float64
            (float32 on devices without it); None where agreement does not count.
        bias_weights: ``w``, what the bias counts in that, ``[layers]``, of the dtype of ``squares``; None for 1.

    Returns:
        ``[matrices of all layers, 4]``: ``<H, W> + <h, b>``, ``||H||^2``, the same were every agreement 1, and
        ``||W||^2 + w ||b||^2`` of every matrix, those of a layer one below the other, in float64 (float32 on devices without
        it). They are finite only where all entries of the matrix are. Not differentiable.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: lengths, shapes, dtypes or devices do not fit, or written tensors share memory; the message names the
            layer. Nothing was written.
        RuntimeError: a written tensor requires grad while autograd records.
    """
    op = "two_sided_directions_"
    _checks.lists_of_layers(op, weights=weights, biases=biases, inverses=inverses, means=means, roots=roots)
    if squares is not None:
        _checks.lists_of_layers(op, weights=weights, squares=squares)
    if bias_weights is not None:
        _checks.floating_tensor(op, "bias_weights", bias_weights)
        _checks.shape_is(op, "bias_weights", bias_weights, (len(weights),), "one entry per layer")
    if not weights:
        return torch.empty(0, 4)
    for i, layer in enumerate(zip(weights, biases, inverses, means, roots, strict=True)):
        _check_layer(f"{op}: layer {i}", *layer, weights[0])
    for i, (square, weight) in enumerate(zip(squares or (), weights, strict=False)):
        where = f"{op}: layer {i}"
        _checks.floating_tensor(where, "squares", square)
        _checks.shape_is(where, "squares", square, weight.shape[:-1], "one entry per row of the weight")
        _like_sums(where, "squares", square, weights[0])
    if bias_weights is not None:
        _like_sums(op, "bias_weights", bias_weights, weights[0])
    given = [bias for bias in biases if bias is not None]
    _checks.writable(op, "weights", weights)
    _checks.writable(op, "biases", given)
    require_one_kind(
        op,
        {"weights": weights, "biases": given},
        inverses=inverses,
        means=means,
        roots=roots,
        squares=squares or (),
        bias_weights=bias_weights,
    )
    sums: Tensor = _two_sided_directions_(weights, given, inverses, means, roots, squares or (), bias_weights)
    return sums


def _like_sums(where: str, name: str, value: Tensor, first: Tensor) -> None:
    _checks.same_device(where, name, value, "the first weight", first)
    if value.dtype != (wanted := sum_dtype(first.device)):
        raise ValueError(f"{where}: {name} is {value.dtype}; it must be {wanted}")


def _check_layer(
    where: str,
    weight: Tensor,
    bias: Tensor | None,
    inverse: Tensor,
    mean: Tensor | None,
    root: Tensor,
    first: Tensor,
) -> None:
    _checks.floating_tensor(where, "weight", weight)
    if weight.dim() < 2:
        raise ValueError(f"{where}: weight has shape {tuple(weight.shape)}; allowed is [..., m, d]")
    *lead, m, d = weight.shape
    if (bias is None) != (mean is None):
        raise ValueError(f"{where}: bias and mean come together, but one of them is None")
    for name, value, columns in (("inverse", inverse, d), ("root", root, m)):
        _checks.floating_tensor(where, name, value)
        size = value.shape[-1] if value.dim() >= 3 else 0
        if size == 0 or value.shape != (*lead, columns // size, size, size) or columns % size:
            raise ValueError(
                f"{where}: {name} has shape {tuple(value.shape)}; allowed are blocks [..., {columns} / size, size, size] with "
                f"the leading dimensions {tuple(lead)} of the weight"
            )
    if bias is not None and mean is not None:
        _checks.floating_tensor(where, "bias", bias)
        _checks.floating_tensor(where, "mean", mean)
        _checks.shape_is(where, "bias", bias, (*lead, m, 1), "one entry per row of the weight")
        _checks.shape_is(where, "mean", mean, (*lead, d), "one entry per column of the weight")
    named = {"weight": weight, "bias": bias, "inverse": inverse, "mean": mean, "root": root}
    for name, given in named.items():
        if given is not None:
            _checks.same_device(where, name, given, "the first weight", first)
            if given.dtype != weight.dtype:
                raise ValueError(f"{where}: {name} is {given.dtype}; it must be {weight.dtype} like the weight")
