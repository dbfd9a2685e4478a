"""The op ``lnb_kernels::balanced_directions``: schema, fake and dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels.balanced import reference

_backend.register(
    "balanced_directions",
    reference.balanced_directions,
    native="lnb_kernels.balanced.native_kernel:balanced_directions",
)


@torch.library.custom_op("lnb_kernels::balanced_directions", mutates_args=())
def _balanced_directions(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    inverses: Sequence[Tensor],
    means: Sequence[Tensor | None],
    roots: Sequence[Tensor],
) -> list[Tensor]:
    problems = list(zip(weights, biases, inverses, means, roots, strict=True))
    with _autocast.disabled(weights[0].device):
        steps, products = _backend.call("balanced_directions", weights[0], problems)
    return [step for step, _ in steps] + [step for _, step in steps if step is not None] + [products]


@_balanced_directions.register_fake
def _(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    inverses: Sequence[Tensor],
    means: Sequence[Tensor | None],
    roots: Sequence[Tensor],
) -> list[Tensor]:
    matrices = sum(weight.shape[:-2].numel() for weight in weights)
    wide = torch.float64 in {weight.dtype for weight in weights}
    products = weights[0].new_empty(matrices, dtype=torch.float64 if wide else torch.float32)
    return [*(t.new_empty(t.shape) for t in (*weights, *biases) if t is not None), products]


def balanced_directions(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    inverses: Sequence[Tensor],
    means: Sequence[Tensor | None],
    roots: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
    """Directions whose every row has unit size in the layer's metric, of a whole model in one call.

    Of a layer with averaged gradient ``W`` of the weight and ``b`` of the bias, inputs of mean ``mu`` and covariance ``C``, and
    ``P`` the second moment of its neurons' whitened gradients, with ``M = P^(-1/2) (W - b mu')`` and ``c = P^(-1/2) b``:

        ``H = M C^-1``,  ``h = c - H mu``,  then row by row  ``(H, h) / sqrt(<H, M> + c^2)``

    which is zero where that is not positive. Each layer has leading dimensions ``...`` of its own, of independent
    matrices. On CPUs the rows of all layers are shared out to the threads at once.

    Args:
        weights: per layer ``W``, ``[..., m, d]``, floating point, all on one device.
        biases: per layer ``b``, ``[..., m, 1]``, or None.
        inverses: the diagonal blocks of ``C^-1``, ``[..., d / size, size, size]``.
        means: ``mu``, ``[..., d]``; None where there is no bias.
        roots: the diagonal blocks of ``P^(-1/2)``, ``[..., m / side, side, side]``.

    Returns:
        ``(directions, bias_directions, products)``: the first two in the shapes of ``weights`` and ``biases``; ``products`` is
        ``<H, W> + <h, b>`` of every matrix, those of a layer side by side, ``[matrices of all layers]``, in float32, or
        float64 if a weight is float64. It is finite only where all entries are. Not differentiable.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: lengths, shapes, dtypes or devices do not fit; the message names the layer.
    """
    op = "balanced_directions"
    _checks.lists_of_layers(op, weights=weights, biases=biases, inverses=inverses, means=means, roots=roots)
    if not weights:
        return [], [], torch.empty(0)
    for i, problem in enumerate(zip(weights, biases, inverses, means, roots, strict=True)):
        _check_layer(f"{op}: layer {i}", *problem, weights[0])
    found = _balanced_directions(weights, biases, inverses, means, roots)
    *solved, products = found
    rest = iter(solved[len(weights) :])
    return solved[: len(weights)], [None if bias is None else next(rest) for bias in biases], products


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
