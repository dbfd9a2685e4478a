"""The three ops by Triton: for GPUs without the CUDA module, as AMD's, or with a driver that is too old for it.

The host reads nothing back. What the kernels do not take goes to the reference, in the same call and first, since it needs memory
and may fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lnb_kernels._triton.arch import arch_of
from lnb_kernels._triton.launch import compiles_or_unavailable, on_device
from lnb_kernels._writes import require_writable
from lnb_kernels.fused_step import apply_reference, reference
from lnb_kernels.fused_step.apply_entries import WRITTEN, Entry, Numbers, is_kernel_memory, takes_memory
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
from lnb_kernels.fused_step.triton_apply import launch_moves
from lnb_kernels.fused_step.triton_direct import launch_direct
from lnb_kernels.fused_step.triton_finish import launch_finish


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
def apply_(lists: Mapping[str, Sequence[Tensor]], entries: Sequence[Entry], numbers: Numbers) -> None:
    """As :func:`lnb_kernels.fused_step.apply_reference.apply_`."""
    require_writable(lists, WRITTEN)
    numbers = numbers.on_device()
    taken = [is_kernel_memory(numbers.finite) and _takes(entry) for entry in entries]
    if any(taken):
        with on_device(numbers.scales):
            launch_moves([entry for entry, mine in zip(entries, taken, strict=True) if mine], numbers)
    rest = [entry for entry, mine in zip(entries, taken, strict=True) if not mine]
    if rest:  # after the kernels, as the directions above
        apply_reference.apply_(lists, rest, numbers)


def _takes(entry: Entry) -> bool:
    """Whether there is a kernel for the entry."""
    narrow = entry.param.dtype in (torch.bfloat16, torch.float16)
    if entry.param.dtype != torch.float32 and not narrow:
        return False
    if entry.master is not None and not narrow:
        return False
    of_y = (torch.float32, torch.bfloat16) if entry.average is None else (torch.float32, torch.bfloat16, torch.float16)
    return entry.y.dtype in of_y and takes_memory(entry)
