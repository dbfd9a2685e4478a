"""The op ``lnb_kernels::pcg_layers``: conjugate gradients per neuron for many small layers of different shapes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _autocast, _backend, _checks
from lnb_kernels.pcg import checks
from lnb_kernels.pcg.checks import Arrow
from lnb_kernels.pcg.op import Equation, is_small


def _one_by_one(equations: Sequence[Equation], iterations: int, ridge: float) -> list[tuple[Tensor, Tensor]]:
    """Each layer by the best kernel for one, where no kernel takes lists."""
    route = "pcg_rows" if all(map(is_small, equations)) else "pcg"
    return [_backend.call(route, p[1], *p, iterations, ridge, "neuron", 2) for p in equations]


_backend.register(
    "pcg_layers",
    _one_by_one,
    native_cuda="lnb_kernels.pcg.cuda_kernel:pcg_rows_list",
    native_dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
)


@torch.library.custom_op("lnb_kernels::pcg_layers", mutates_args=())
def _pcg_layers(
    moments: Sequence[Tensor],
    gradients: Sequence[Tensor],
    starts: Sequence[Tensor | None],
    means: Sequence[Tensor | None],
    variances: Sequence[Tensor | None],
    iterations: int,
    ridge: float,
) -> tuple[list[Tensor], list[Tensor]]:
    # PyTorch resolves negated views of an op's arguments, but not in lists with gaps.
    resolved = [[None if t is None else t.resolve_neg() for t in tensors] for tensors in (starts, means, variances)]
    equations = list(zip(moments, gradients, *resolved, strict=True))
    solved: list[tuple[Tensor, Tensor]] = [(equation[1], equation[1]) for equation in equations]
    with _autocast.disabled(gradients[0].device):
        for small in (True, False):
            chosen = [i for i, equation in enumerate(equations) if is_small(equation) == small]
            if not chosen:
                continue
            of_kind = [equations[i] for i in chosen]
            if small:
                found = _backend.call("pcg_layers", of_kind[0][1], of_kind, iterations, ridge)
            else:
                found = _one_by_one(of_kind, iterations, ridge)
            for i, result in zip(chosen, found, strict=True):
                solved[i] = result
    return [h for h, _ in solved], [norms for _, norms in solved]


@_pcg_layers.register_fake
def _(moments: Sequence[Tensor], gradients: Sequence[Tensor], *rest: Any) -> tuple[list[Tensor], list[Tensor]]:
    *_, iterations, _ = rest
    norms = [g.new_empty((iterations + 1, *g.shape[:-1]), dtype=_checks.accumulation_dtype(g.dtype)) for g in gradients]
    return [g.new_empty(g.shape) for g in gradients], norms


def pcg_layers(
    moments: Sequence[Tensor],
    gradients: Sequence[Tensor],
    starts: Sequence[Tensor | None] | None = None,
    arrows: Sequence[Arrow | None] | None = None,
    iterations: int = 2,
    ridge: float = 0.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """:func:`lnb_kernels.pcg` with ``scope="neuron"`` for every layer of a list, whatever their shapes.

    On an NVIDIA GPU all layers of up to 129 columns (128 features and a bias) are solved in one launch for every 128 of
    them, each row's state in registers; wider ones, and those with float64, one after the other.

    Args:
        moments: second moments ``S`` with the ones column, each ``[..., D+1, D+1]``.
        gradients: as many right-hand sides, ``[..., m, D]`` or ``[..., m, D+1]``, on the same device.
        starts: None for zeros, or for each layer a tensor of its gradient's shape or None.
        arrows: None, or for each layer None (no preconditioner) or ``(mu, var)``, each ``[..., D]``.
        iterations: number of steps, >= 0.
        ridge: of all layers, a finite number >= 0.

    Returns:
        ``(directions, residual_norms)``, lists of what :func:`lnb_kernels.pcg` returns. Not differentiable.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: lengths, shapes, devices or options do not fit; the message names the layer.
    """
    op = "pcg_layers"
    _checks.lists_of_layers(op, gradients=gradients)
    starts = [None] * len(gradients) if starts is None else starts
    arrows = [None] * len(gradients) if arrows is None else arrows
    _checks.lists_of_layers(op, gradients=gradients, moments=moments, starts=starts, arrows=arrows)
    checks.iterations(op, iterations)
    pairs: list[tuple[Tensor | None, Tensor | None]] = []
    for i, equation in enumerate(zip(moments, gradients, starts, arrows, strict=True)):
        pairs.append(_check_layer(f"{op}: layer {i}", *equation))
        ridge = _checks.ridge(op, ridge, *equation[:2])
        _checks.same_device(op, f"gradients[{i}]", equation[1], "gradients[0]", gradients[0])
    ridge = _checks.non_negative(op, "ridge", ridge)
    if not gradients:
        return [], []
    directions, norms = _pcg_layers(
        moments, gradients, starts, [mu for mu, _ in pairs], [var for _, var in pairs], iterations, ridge
    )
    return directions, norms


def _check_layer(
    where: str, s: Tensor, g: Tensor, h0: Tensor | None, arrow: Arrow | None
) -> tuple[Tensor | None, Tensor | None]:
    """Check one layer; returns ``mu`` and ``var``."""
    checks.right_hand_side(where, "gradient", g)
    checks.second_moment(where, "moment", s, "gradient", g)
    checks.start(where, "start", h0, "gradient", g)
    return checks.arrow(where, arrow, "gradient", g, s.shape[-1] - 1, "the features of S")
