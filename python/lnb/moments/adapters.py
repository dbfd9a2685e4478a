"""CorDA: low-rank adapters that start from the parts of a weight that matter most, or least, for some inputs.

With ``S = E[x x']`` of a layer's inputs and ``W S = U D V'``, ``W = U D V' S^-1``: a part of the sum over singular values
becomes the adapter, the rest stays frozen, and the layer computes what it did (Yang et al., "CorDA: Context-Oriented
Decomposition Adaptation of Large Language Models", arXiv:2406.05223). ``S`` is taken relative to its mean diagonal, so that the
sizes of the two factors do not depend on the scale of the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lnb.config import check_choice, check_count, check_number
from lnb.moments.grid import require_weight
from lnb.moments.record import LayerMoment, require_moment

METHODS = ("ipm", "kpm")


class Adapter(NamedTuple):
    """``W = residual + B A``, in the layout of PEFT's LoRA with ``lora_alpha = r``.

    Attributes:
        A: ``lora_A.weight``, ``[r, d_in]``.
        B: ``lora_B.weight``, ``[d_out, r]``.
        residual: what the frozen weight becomes, in the shape of the original.
    """

    A: Tensor
    B: Tensor
    residual: Tensor


def corda(weight: Tensor, moment: LayerMoment, rank: int, *, method: str = "ipm", damp: float = 0.01) -> Adapter:
    """An adapter of rank ``rank`` for a linear layer.

    Args:
        weight: ``[d_out, d_in]``.
        moment: of the layer's inputs on the data that the adapter is to learn from (``"ipm"``) or to spare (``"kpm"``). Diagonal
            blocks serve as a block-diagonal matrix.
        rank: at most the smaller side of ``weight``.
        method: ``"ipm"``, instruction-previewed: the largest singular values become the adapter; ``"kpm"``,
            knowledge-preserved: the smallest.
        damp: times the mean diagonal is added to the second moment's diagonal, > 0.

    Returns:
        ``A``, ``B`` and the residual, in the dtype and on the device of ``weight``.

    Raises:
        TypeError, ValueError: an argument is not allowed, the moment is of another layer, or the layer has groups.
    """
    weight = require_weight(weight)
    moment = require_moment(moment)
    info = moment.info
    check_choice("method", method, METHODS)
    check_number("damp", damp, low=0.0, low_allowed=False)
    check_count("rank", rank)
    matrix = info.matrix(weight).double()
    if info.groups > 1:
        raise ValueError(
            f"layer {info.name!r} has {info.groups} groups with inputs of their own; one adapter cannot serve them: "
            f"cut its weight "
            f"into that many layers"
        )
    if rank > min(matrix.shape[1:]):
        raise ValueError(f"rank={rank!r} must be at most {min(matrix.shape[1:])}, the smaller side of the weight")
    square = moment.second_moment[0].to(matrix)  # [blocks, size, size]
    mean = square.diagonal(dim1=-2, dim2=-1).mean()
    eye = torch.eye(info.size, dtype=square.dtype, device=square.device)
    square = square / mean + damp * eye if float(mean) > 0 else eye.expand_as(square)
    lower, failed = torch.linalg.cholesky_ex(square)
    if bool((failed != 0).any()):
        raise ValueError(
            f"layer {info.name!r}: its second moment is not positive definite with damp={damp!r}; raise damp"
        )
    blocks = matrix[0].unflatten(-1, (info.blocks, info.size)).transpose(0, 1)  # [blocks, d_out, size]
    product = (blocks @ square).transpose(0, 1).flatten(1)
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    kept = slice(0, rank) if method == "ipm" else slice(len(values) - rank, None)
    root = values[kept].sqrt()
    rows = (
        (root.unsqueeze(-1) * right[kept]).unflatten(-1, (info.blocks, info.size)).transpose(0, 1)
    )  # [blocks, r, size]
    down = torch.cholesky_solve(rows.mT, lower).mT.transpose(0, 1).flatten(1)
    a, b = down.to(weight), (left[:, kept] * root).to(weight)
    residual = matrix[0] - b.double() @ a.double()  # of the rounded ones: the sum is the weight to rounding
    return Adapter(a.contiguous(), b.contiguous(), residual.to(weight).reshape(weight.shape))
