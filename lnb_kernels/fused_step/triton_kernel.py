"""The three ops by Triton: for GPUs without the CUDA module, as AMD's, or with a driver that is too old for it.

The host reads nothing back. What the kernels do not take goes to the reference, in the same call and first, since it needs memory
and may fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lnb_kernels._triton.arch import arch_of
from lnb_kernels._triton.launch import compiles_or_unavailable, on_device
from lnb_kernels._writes import require_writable
from lnb_kernels.fused_step import apply_reference, reference
from lnb_kernels.fused_step.apply_entries import (
    LISTS,
    WRITTEN,
    Entry,
    dense,
    entries_of,
    is_kernel_memory,
    takes_memory,
)
from lnb_kernels.fused_step.layers import (
    LARGEST_TRITON,
    DirectArguments,
    DirectLayer,
    FinishArguments,
    FinishLayer,
    is_served,
    places_of,
)
from lnb_kernels.fused_step.left_over import direct_left_over_
from lnb_kernels.fused_step.triton_apply import Numbers, launch_moves
from lnb_kernels.fused_step.triton_direct import launch_direct
from lnb_kernels.fused_step.triton_finish import launch_finish, rates_on_device
from lnb_kernels.multi_tensor.grouping import rate_beside


@compiles_or_unavailable("direct_layers_")
def direct_layers_(layers: Sequence[DirectLayer], given: DirectArguments) -> None:
    """As :func:`lnb_kernels.fused_step.direct_layers_`."""
    served = [is_served(layer, LARGEST_TRITON) for layer in layers]
    given = given.resolved()
    direct_some_(layers, served, given)
    # After the kernel: where that does not compile, the reference takes all layers, of which none may have moved already.
    direct_left_over_(layers, served, given)


@compiles_or_unavailable("direct_layers_")
def direct_some_(layers: Sequence[DirectLayer], chosen: Sequence[bool], given: DirectArguments) -> None:
    """The directions of the layers that are ``chosen``, all of which the kernel takes."""
    members = [member for member, mine in zip(zip(layers, places_of(layers), strict=True), chosen, strict=True) if mine]
    arch = arch_of(given.partials.device)
    if (
        arch.tf32_rate == 0 and given.precision != "bf16"
    ):  # matrix units without tf32 multiply float32 numbers as they are
        given = replace(given, precision="ieee")
    with on_device(given.partials):
        launch_direct(members, given, arch)


@compiles_or_unavailable("finish_layers_")
def finish_layers_(layers: Sequence[FinishLayer], given: FinishArguments) -> None:
    """As :func:`lnb_kernels.fused_step.finish_layers_`; all layers by the reference where one has strided or wide biases."""
    if not given.are_served(layers):
        reference.finish_layers_(layers, given)
        return
    with on_device(given.partials):
        launch_finish(layers, given.resolved())


@compiles_or_unavailable("fused_step_apply_")
def apply_(
    params: Sequence[Tensor],
    masters: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    finite: Sequence[Tensor],
    directions: Sequence[Tensor],
    row_scales: Sequence[Tensor],
    gradients: Sequence[Tensor],
    mastered: Sequence[int],
    places: Sequence[int],
    groups: Sequence[int],
    scales: Tensor,
    shorter: Tensor | None,
    shares: Tensor | None,
    corrections: Tensor | None,
    lr: Sequence[float],
    lr_tensors: Sequence[Tensor | None],
    weight_decay: Sequence[float],
    weight_decay_tensors: Sequence[Tensor | None],
    rule: Sequence[float],
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.fused_step.apply_reference.apply_`."""
    lists = (params, masters, averages, squares, finite, directions, row_scales, gradients)
    require_writable(dict(zip(LISTS, lists, strict=True)), WRITTEN)
    device = params[0].device
    entries = entries_of(
        params, masters, averages, squares, directions, row_scales, gradients, mastered, places, groups
    )
    of_lr, of_decay = (
        apply_reference.rates(rate_beside(pair, device) for pair in zip(numbers, tensors, strict=True))
        for numbers, tensors in ((lr, lr_tensors), (weight_decay, weight_decay_tensors))
    )
    flags = finite[0] if finite else None
    scales = scales.resolve_neg().contiguous()
    shorter, shares, corrections = map(dense, (shorter, shares, corrections))
    taken = [is_kernel_memory(flags) and _takes(entry) for entry in entries]
    if any(taken):
        with on_device(scales):
            rates, found = rates_on_device([*of_lr, *of_decay], device)
            launch_moves(
                [entry for entry, mine in zip(entries, taken, strict=True) if mine],
                found[: len(of_lr)],
                found[len(of_lr) :],
                Numbers(rates, scales, shorter, shares, corrections, flags, ok),
                rule,
            )
    rest = [entry for entry, mine in zip(entries, taken, strict=True) if not mine]
    if rest:  # after the kernels, as the directions above
        apply_reference.move(
            rest, apply_reference.Numbers(scales, shorter, shares, corrections, of_lr, of_decay, rule, flags, ok)
        )


def _takes(entry: Entry) -> bool:
    """Whether there is a kernel for the entry."""
    narrow = entry.param.dtype in (torch.bfloat16, torch.float16)
    if entry.param.dtype != torch.float32 and not narrow:
        return False
    if entry.master is not None and not narrow:
        return False
    of_y = (torch.float32, torch.bfloat16) if entry.average is None else (torch.float32, torch.bfloat16, torch.float16)
    return entry.y.dtype in of_y and takes_memory(entry)
