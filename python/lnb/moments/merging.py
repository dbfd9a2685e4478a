"""RegMean: models merged by least squares on what their layers would have seen.

For models ``i`` with inputs ``X_i`` of a layer, the one matrix ``W`` closest to all of them in function, which minimises
``sum_i c_i E ||(W - W_i) x_i||^2``, has the normal equations ``W sum_i c_i S_i = sum_i c_i W_i S_i`` with
``S_i = E[x_i x_i']`` (Jin, Ren, Preotiuc-Pietro and Cheng, "Dataless Knowledge Fusion by Merging Weights of Language Models",
arXiv:2212.09849). They shrink off-diagonal entries of every ``S_i``, by 0.9 for most models; all other parameters are averaged.
With ``bias=True`` the rows are ``[x 1]`` and the bias is part of the same least squares.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lnb.config import check_number
from lnb.moments.collection import Moments
from lnb.moments.naming import require_rows, unwrapped
from lnb.moments.record import LayerInfo, LayerMoment, MissingMoment, require_moment

_STABILISER = 1e-7
"""Times the mean diagonal, added to the equations with the plain average as its solution: it decides where inputs "
"never vary."""


def regmean(
    models: Sequence[nn.Module],
    moments: Sequence[Moments],
    *,
    shrink: float = 0.9,
    weights: Sequence[float] | None = None,
    bias: bool = False,
) -> dict[str, Tensor]:
    """Merge models of one architecture.

    Args:
        models: two or more, with the same parameters; they stay as they are.
        moments: of each, in the same order, of the same layers in the same blocks. In blocks the equations hold for
            block-diagonal second moments.
        shrink: what off-diagonal entries are multiplied by, in [0, 1].
        weights: how much each model counts, > 0; None for alike.
        bias: solve for weight and bias together, of layers that have one; needs full moments.

    Returns:
        A state dict for ``load_state_dict``, with layers that have moments merged by RegMean, and other floating-point entries by
        (weighted) averages. What is no floating-point tensor is the first model's.

    Raises:
        TypeError, ValueError: an argument is not allowed, or models or moments do not fit each other.
    """
    inner, shares = _checked(models, moments, weights)
    if isinstance(shrink, bool) or not isinstance(shrink, (int, float)) or not 0 <= shrink <= 1:
        raise ValueError(f"shrink={shrink!r} must be in [0, 1]")
    states = [model.state_dict() for model in inner]
    _require_alike(states)
    merged = {name: _averaged([state[name] for state in states], shares) for name in states[0]}
    aliases = _aliases(inner[0])
    for name, info in moments[0].infos.items():
        found = [require_moment(each[name]) for each in moments]
        if any(moment.info.place != info.place for moment in found):
            raise ValueError(
                f"layer {name!r}: the moments are in different blocks or of different layers; gather or export all "
                f"of them with one "
                f"block_size"
            )
        for model in inner:
            moments[0].parameter(model, name)
            require_rows(model, name, info.parameter)
        for parameter, value in _solved(info, states, found, shares, float(shrink), bias).items():
            for alias in aliases[parameter]:
                merged[alias] = value
    return merged


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """All names of every parameter: a shared one stands in a state dict under each."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: found for found in names.values() for name in found}


def _checked(
    models: Sequence[nn.Module], moments: Sequence[Moments], weights: Sequence[float] | None
) -> tuple[list[nn.Module], list[float]]:
    inner = [unwrapped(model) for model in models]
    if len(inner) < 2:
        raise ValueError(f"models: {len(inner)} given; two or more can be merged")
    for i, each in enumerate(moments):
        if not isinstance(each, Moments):
            raise TypeError(f"moments[{i}]={reprlib.repr(each)} must be a Moments, not {type(each).__name__}")
    if len(moments) != len(inner):
        raise ValueError(f"moments: {len(moments)} given for {len(inner)} models; each model needs its own")
    for i, each in enumerate(moments):
        differing = sorted(each.infos.keys() ^ moments[0].infos.keys())
        if differing:
            raise MissingMoment(
                f"moments[{i}]: layers {reprlib.repr(differing)} have moments of some models only; gather or export "
                f"the same layers "
                f"of all"
            )
    shares = [1.0] * len(inner) if weights is None else list(weights)
    if len(shares) != len(inner):
        raise ValueError(f"weights={weights!r} must be {len(inner)} numbers, one for each model")
    for share in shares:
        check_number("weights", share, low=0.0, low_allowed=False)
    return inner, [share / sum(shares) for share in shares]


def _require_alike(states: list[dict[str, Tensor]]) -> None:
    for i, state in enumerate(states):
        differing = sorted(state.keys() ^ states[0].keys())
        differing += [n for n in state.keys() & states[0].keys() if state[n].shape != states[0][n].shape]
        if differing:
            raise ValueError(
                f"models[{i}] differs from models[0] in {reprlib.repr(differing)}: only models of one architecture "
                f"can be merged"
            )


def _averaged(values: list[Tensor], shares: list[float]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0].clone()
    return sum((v.double() * s for v, s in zip(values, shares, strict=True)), torch.zeros(())).to(values[0])


def _solved(
    info: LayerInfo,
    states: list[dict[str, Tensor]],
    moments: list[LayerMoment],
    shares: list[float],
    shrink: float,
    bias: bool,
) -> dict[str, Tensor]:
    """The merged weight of a layer, and its bias where it takes part."""
    joint = bias and info.bias is not None
    if joint and info.blocks > 1:
        raise ValueError(
            f"bias=True: layer {info.name!r} has its second moment in {info.blocks} diagonal blocks, and a bias "
            f"couples all of "
            f"them; train with block_size=None or use gather_moments(model, loader), or leave biases to be averaged"
        )
    matrices = []
    for state in states:
        matrix = info.matrix(state[info.parameter]).double()
        if joint and info.bias is not None:
            matrix = torch.cat([matrix, state[info.bias].double().view(info.groups, -1, 1)], dim=-1)
        matrices.append(matrix.unflatten(-1, (info.blocks, -1)).transpose(1, 2))  # [groups, blocks, rows, size]
    left = right = average = torch.zeros(())
    for matrix, moment, share in zip(matrices, moments, shares, strict=True):
        square = (_with_ones(moment) if joint else moment.second_moment).to(matrix)
        diagonal = square.diagonal(dim1=-2, dim2=-1)
        square = shrink * square + (1 - shrink) * torch.diag_embed(diagonal)
        left, right, average = left + share * square, right + share * matrix @ square, average + share * matrix
    diagonal = left.diagonal(dim1=-2, dim2=-1)
    added = _STABILISER * diagonal.mean((-2, -1), keepdim=True).unsqueeze(-1)
    added = torch.where(added > 0, added, 1.0)  # inputs that are all zero: the average
    left = left + added * torch.eye(left.shape[-1], dtype=left.dtype, device=left.device)
    right = right + added * average
    lower = torch.linalg.cholesky(left)
    solution = torch.cholesky_solve(right.mT, lower).mT.transpose(1, 2).flatten(2)  # [groups, rows, columns]
    like = states[0][info.parameter]
    if not joint or info.bias is None:
        return {info.parameter: solution.reshape(like.shape).to(like)}
    return {
        info.parameter: solution[..., :-1].reshape(like.shape).to(like),
        info.bias: solution[..., -1].reshape(-1).to(states[0][info.bias]),
    }


def _with_ones(moment: LayerMoment) -> Tensor:
    """``E[x~ x~']`` of ``x~ = [x 1]``, of a full moment: ``[groups, 1, d_in + 1, d_in + 1]``."""
    mean = moment.mean.unsqueeze(1).unsqueeze(-1)
    one = torch.ones_like(mean[..., :1, :])
    return torch.cat([torch.cat([moment.second_moment, mean], -1), torch.cat([mean.mT, one], -1)], -2)
