"""The op ``lnb_kernels::fused_step_apply_``: the last pass of a step, over all parameters of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _backend
from lnb_kernels._library import define_in_place
from lnb_kernels._writes import require_mutable, require_one_kind
from lnb_kernels.fused_step import apply_checks, apply_reference
from lnb_kernels.fused_step.apply_arguments import AdamRule, Biases, Others, Weights
from lnb_kernels.fused_step.apply_entries import LISTS, WRITTEN, Numbers, entries_of


def apply_(
    weights: Weights,
    biases: Biases,
    others: Others,
    scales: Tensor,
    lr: Sequence[float | Tensor],
    weight_decay: Sequence[float | Tensor],
    rule: AdamRule | None = None,
    shorter: Tensor | None = None,
    ok: Tensor | None = None,
) -> None:
    """Move all parameters of a model, in place: on NVIDIA GPUs in one launch for each kind of parameter.

    With ``s = lr scales[place]``, a layer's factor ``f = shorter[layer]`` (1 without ``shorter``), and ``d`` the weight decay::

        weight  theta <- theta - (s row_scale direction + ((1 - f) + f lr d) theta)
        bias    theta <- theta - (s direction + lr d theta)
        other   m <- beta m + (1 - beta) g;  g~ = share m + take g;  v <- b_others v + (1 - b_others) clip(g)^2
                theta <- theta - (s clip(g~) / (sqrt(v / correction) + epsilon) + lr d theta)

    The weight's line is ``theta <- f (1 - lr d) theta - s row_scale direction``: one step that also multiplies it by ``f``.
    ``clip`` keeps squares finite: entries beyond half the root of the dtype's largest number count as that.

    A scale of 0, of a layer or of a row, switches a direction off: then it may hold NaN. An entry of an other parameter whose
    direction is not finite only decays. Arithmetic is in float32, or float64 where a float64 tensor takes part.

    Args:
        weights, biases, others: the parameters to move, all on one device. Nothing that is written may share memory with
            anything else.
        scales: ``[n]``, one factor per layer and other parameter, in float64 (float32 on devices without it).
        lr: learning rate of each parameter group: a number or a tensor ``[]`` (read on its device: a captured CUDA graph
            follows its changes).
        weight_decay: likewise, as many.
        rule: of ``others``; None where there are none.
        shorter: None, or ``[n]`` beside ``scales`` and of its dtype: the factors by which a step also multiplies the weights
            of a layer. Entries of other parameters are not read.
        ok: bool tensor ``[]`` on the same device. Nothing is written where it is False; the host does not wait for it.

    Raises:
        TypeError: a list holds something else than dense floating tensors, or a tensor has a dtype that is not allowed.
        ValueError: lengths, shapes, devices or places do not fit, written memory is shared, or a number is not allowed.
        RuntimeError: a written tensor requires grad while autograd records.
    """
    given = apply_checks.checked(weights, biases, others, scales, lr, weight_decay, rule, shorter, ok)
    if not given["params"]:
        return
    written = {name: given[name] for name in WRITTEN}
    rest = {name: value for name, value in given.items() if name not in written}
    require_one_kind("fused_step.apply_", written, **rest)
    _apply(*given.values())


def _kernel(*args: Any) -> None:
    lists = dict(zip(LISTS, args, strict=False))
    require_mutable({name: lists[name] for name in WRITTEN})
    mastered, places, groups, scales, shorter, shares, corrections, *rates, rule, ok = args[len(LISTS) :]
    lr, weight_decay = (list(zip(*pair, strict=True)) for pair in (rates[:2], rates[2:]))
    finite = lists["finite"][0] if lists["finite"] else None
    numbers = Numbers(scales, shorter, shares, corrections, lr, weight_decay, rule, finite, ok)
    params = lists["params"]
    _backend.call("fused_step_apply_", params[0], lists, entries_of(lists, mastered, places, groups), numbers)


_backend.register(
    "fused_step_apply_",
    apply_reference.apply_,
    triton="lnb_kernels.fused_step.triton_kernel:apply_",
    native_cuda="lnb_kernels.fused_step.apply_cuda:apply_",
    native_dtypes=frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}),
)
_apply = define_in_place(
    "fused_step_apply_(Tensor(a!)[] params, Tensor(b!)[] masters, Tensor(c!)[] averages, Tensor(d!)[] squares, "
    "Tensor(e!)[] finite, Tensor[] directions, Tensor[] row_scales, Tensor[] gradients, int[] mastered, int[] places, "
    "int[] groups, Tensor scales, Tensor? shorter, Tensor? shares, Tensor? corrections, float[] lr, Tensor?[] lr_tensors, "
    "float[] weight_decay, Tensor?[] weight_decay_tensors, float[] rule, Tensor? ok) -> ()",
    _kernel,
    lambda *_: None,
    len(WRITTEN),
)
