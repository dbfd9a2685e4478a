"""Two-sided directions in plain PyTorch: the executable specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels._writes import require_writable
from lnb_kernels.scaling import sum_dtype, unit_scale

# weight, bias, inverse, mean, root, squares, bias_weight
LayerTensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]


LISTS = ("weights", "biases", "inverses", "means", "roots", "squares", "bias_weights")
"""The lists that the public function takes, in the order of a :data:`LayerTensors`."""


@torch.no_grad()
def two_sided_directions_(layers: Sequence[LayerTensors]) -> Tensor:
    """Overwrite weight and bias of every layer by their directions; see :func:`lnb_kernels.two_sided_directions_`."""
    require_apart(layers)
    if not layers:
        return torch.empty(0, 4)
    if layers[0][0].is_cpu:  # one at a time, so that only one has its copies in memory
        return torch.cat([two_sided_direction_(*layer) for layer in layers])
    return by_kind_(layers)


def by_kind_(layers: Sequence[LayerTensors]) -> Tensor:
    """The same with layers of equal shapes solved together: on an accelerator the calls of each would cost more than the
    stack."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for i, layer in enumerate(layers):
        kind = layer[0].dtype, *(None if tensor is None else tensor.shape for tensor in layer)
        kinds.setdefault(kind, []).append(i)
    sums: dict[int, Tensor] = {}
    for members in kinds.values():
        if len(members) == 1:
            sums[members[0]] = two_sided_direction_(*layers[members[0]])
            continue
        columns = zip(*(layers[i] for i in members), strict=True)
        weight, bias, inverse, mean, root, squares, bias_weight = map(_stacked, columns)
        assert weight is not None
        assert inverse is not None
        assert root is not None
        found = two_sided_direction_(weight, bias, inverse, mean, root, squares, bias_weight)
        for place, solved in ((0, weight), (1, bias)):
            if solved is not None:
                written = [tensor for i in members if (tensor := layers[i][place]) is not None]
                torch._foreach_copy_(written, list(solved.unbind()))
        matrices = layers[members[0]][0].shape[:-2].numel()
        sums.update(zip(members, found.split([matrices] * len(members)), strict=True))
    return torch.cat([sums[i] for i in range(len(layers))])


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(given) if given else None


def require_apart(layers: Sequence[LayerTensors]) -> None:
    """Refuse, before anything is written, memory that is written and shared or missing, and inference tensors."""
    named = {name: [layer[k] for layer in layers] for k, name in enumerate(LISTS)}
    require_writable(named, LISTS[:2])


def two_sided_direction_(
    weight: Tensor,
    bias: Tensor | None,
    inverse: Tensor,
    mean: Tensor | None,
    root: Tensor,
    squares: Tensor | None = None,
    bias_weight: Tensor | None = None,
) -> Tensor:
    """One of them; returns what :func:`lnb_kernels.two_sided_directions_` returns of its matrices, ``[matrices, 4]``.

    Directions do not depend on the size of ``W`` or of ``P``. Both are brought to unit size, through ``P`` alone, so that the
    products of the rows are in the range of the dtype.
    """
    wide = sum_dtype(weight.device)
    average = row_squares(weight, bias, bias_weight)
    gradient = average.sum((-2, -1)).flatten()
    root = root * unit_scale(root, matrix_dims=3) * unit_scale(weight, bias).unsqueeze(-3)
    mixed = mix(root, weight)
    mixed_bias = None
    if bias is not None and mean is not None:
        mixed_bias = mix(root, bias)
        mixed.addcmul_(mixed_bias, mean.unsqueeze(-2), value=-1)  # centred
    step = times_blocks(mixed, inverse)
    # <(h_w, h_b), (w, b)> = <h_w, w - b mu> + b^2
    product = _rows_dot(step, mixed)
    scale = row_scale(product if mixed_bias is None else product + mixed_bias.square())
    squares_of_rows = (step.to(wide).square().sum(-1, keepdim=True) * scale.to(wide).square()).flatten(-2)
    free_norm = squares_of_rows.sum(-1).flatten()
    if squares is not None:
        scale = (scale * agreement_of(average, squares.unsqueeze(-1))).to(scale.dtype)
    step_bias = None
    if bias is not None and mean is not None and mixed_bias is not None:
        step_bias = (mixed_bias - step @ mean.unsqueeze(-1)) * scale
    step = torch.mul(step, scale, out=mixed)
    products = _products(step, weight)
    if bias is not None and step_bias is not None:
        products = products + _products(step_bias, bias)
        bias.copy_(step_bias)
    weight.copy_(step)
    return torch.stack([products, _products(step, step), free_norm, gradient], dim=-1)


def row_squares(weight: Tensor, bias: Tensor | None, bias_weight: Tensor | None = None) -> Tensor:
    """``||g_i||^2`` of the rows of ``weight [..., m, d]`` and ``bias [..., m, 1]`` together, ``[..., m, 1]``, in float64 (float32
    on devices without it). ``bias_weight``, ``[]`` or with the first dimensions of ``weight``, is what the bias counts."""
    wide = sum_dtype(weight.device)
    square = weight.to(wide).square().sum(-1, keepdim=True)
    if bias is None:
        return square
    of_bias = bias.to(wide).square()
    if bias_weight is not None:
        of_bias = of_bias * bias_weight.view(*bias_weight.shape, *[1] * (of_bias.dim() - bias_weight.dim()))
    return square + of_bias


def agreement_of(square: Tensor, mean_square: Tensor) -> Tensor:
    """How far the gradients of rows agree with each other, ``min(1, sqrt(||g~_i||^2 / v_i))``, in any one shape.

    ``g~_i``, of square ``square``, is the average of the row's gradients, and ``v_i = mean_square`` the average of their squared
    norms: 1 where all are the same, less where they have nothing in common, and least where they point against each other, as
    those of steps that are too long do.
    """
    mean = mean_square.to(square.dtype)
    return torch.where(mean > 0, square / mean, 0.0).clamp(max=1).sqrt()


def _products(step: Tensor, gradient: Tensor) -> Tensor:
    wide = sum_dtype(step.device)
    return (step.to(wide) * gradient.to(wide)).sum((-2, -1)).flatten()


def _rows_dot(x: Tensor, y: Tensor) -> Tensor:
    """The dot product of every pair of rows, ``[..., m, 1]``."""
    return (x * y).sum(-1, keepdim=True)


def row_scale(products: Tensor) -> Tensor:
    """``1 / sqrt(<h_i, g~_i>)`` of every row; 0 where that is not positive: such a row is no descent direction."""
    return torch.where(products > 0, products.rsqrt(), 0.0)


def mix(root: Tensor, rows: Tensor) -> Tensor:
    """The block-diagonal ``root [..., blocks, size, size]`` times ``[..., rows, n]``."""
    blocks, size = root.shape[-3], root.shape[-1]
    product: Tensor = root @ rows.unflatten(-2, (blocks, size))
    return product.flatten(-3, -2)


def times_blocks(rows: Tensor, blocks: Tensor) -> Tensor:
    """``rows [..., m, d]`` times the block-diagonal matrix ``blocks [..., blocks, size, size]``."""
    count, size = blocks.shape[-3], blocks.shape[-1]
    if count == 1:
        return rows @ blocks.squeeze(-3)
    cut: Tensor = rows.unflatten(-1, (count, size)).movedim(-2, -3)  # [..., blocks, m, size]
    return (cut @ blocks).movedim(-3, -2).flatten(-2)
