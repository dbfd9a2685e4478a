"""The multi-tensor ops by the CUDA kernels: one launch for all tensors of a dtype pair, up to a few hundred.

The host reads nothing back and copies nothing to the device: flags, scales and rates are read there, addresses travel as
kernel parameters, and scratch memory comes from PyTorch's allocator. So every call can be captured in a CUDA graph.

Pairs that the kernels do not take - strides that differ or leave gaps, float64 or two 16-bit formats side by side - go to
the reference, in the same call: first, since it needs memory and may fail. All checks of memory come before the first write.
Where CUDA refuses a later launch of a call, what its first launches wrote stays: that is a fault of the device or the driver,
and nothing there can be taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _cuda
from lnb_kernels.multi_tensor import reference
from lnb_kernels.multi_tensor.grouping import Group, at, native_type, partition, rate_beside, separate


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.all_finite`."""
    native = _cuda.module(tensors[0].device)
    groups, rest = partition(native, {"tensors": tensors}, lambda _: True)
    finite = torch.ones((), dtype=torch.bool, device=tensors[0].device)
    for group in groups:
        native.all_finite(group.addresses[0], group.types[0], group.sizes, finite.data_ptr(), _cuda.where(finite))
    return finite & reference.all_finite(at(tensors, rest)) if rest else finite


def moment_flags(moments: Sequence[Tensor]) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.moment_flags`: one launch for up to 1,024 moments."""
    if any(x.dtype != torch.float32 or not x.is_contiguous() or x.is_neg() or x.numel() == 0 for x in moments):
        return reference.moment_flags(moments)
    native = _cuda.module(moments[0].device)
    flags = torch.ones((2, len(moments)), dtype=torch.bool, device=moments[0].device)
    sides = [moment.shape[-1] for moment in moments]
    counts = [moment.shape[:-2].numel() for moment in moments]
    native.moment_flags(
        [moment.data_ptr() for moment in moments], counts, sides, flags[0].data_ptr(), flags[1].data_ptr(),
        _cuda.where(flags),
    )  # fmt: skip
    return flags


def ema_combined_(
    averages: Sequence[Tensor],
    outputs: Sequence[Tensor],
    values: Sequence[Tensor],
    beta: float,
    shares: Tensor,
    take: float,
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.multi_tensor.reference.ema_combined_`."""
    native = _cuda.module(averages[0].device)
    lists = {"averages": averages, "values": values, "out": outputs}
    groups, rest = separate(native, lists, lambda x, y, _: native.combines(x, y), {"averages", "out"})
    factors = shares.resolve_neg().contiguous()
    if rest:
        chosen = torch.stack([shares[i] for i in rest])
        reference.ema_combined_(at(averages, rest), at(outputs, rest), at(values, rest), beta, chosen, take, ok)
    for group in groups:
        of_averages, of_values, of_outputs = group.addresses
        native.ema_combined(
            of_averages, group.types[0], of_values, group.types[1], of_outputs, group.sizes, list(group.positions), beta,
            factors.data_ptr(), native_type(native, factors.dtype), take, _address(ok), _cuda.where(factors),
        )  # fmt: skip


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:
    """As :func:`lnb_kernels.multi_tensor.reference.dot`."""
    native = _cuda.module(xs[0].device)
    groups, rest = partition(native, {"xs": xs, "ys": ys}, native.supported)
    sums = _Sums(native, xs, rest, layers)
    for group in groups:
        native.dot(*_operands(group), sums.slots(group), sums.address, _cuda.where(xs[0]))
    if rest:
        sums.set(rest, reference.dot(at(xs, rest), at(ys, rest)))
    return sums.total()


def apply_(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    weight_decay_tensor: Tensor | None,
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.multi_tensor.reference.apply_`."""
    native = _cuda.module(params[0].device)
    groups, rest = separate(native, {"params": params, "directions": directions}, native.supported, {"params"})
    step = _Step(native, scales, (lr, lr_tensor), (weight_decay, weight_decay_tensor), ok)
    if rest:
        reference.apply_(
            at(params, rest), at(directions, rest), step.scales_at(rest), *step.lr, *step.weight_decay, ok,
        )  # fmt: skip
    for group in groups:
        native.apply(*_operands(group), list(group.positions), *step.arguments())


def apply_master_(
    masters: Sequence[Tensor],
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Tensor,
    lr: float,
    lr_tensor: Tensor | None,
    weight_decay: float,
    weight_decay_tensor: Tensor | None,
    ok: Tensor | None,
) -> None:
    """As :func:`lnb_kernels.multi_tensor.reference.apply_master_`."""
    native = _cuda.module(masters[0].device)
    types = native.Type

    def supported(_: Any, param: Any, direction: Any) -> bool:
        return param in (types.BFLOAT16, types.FLOAT16) and direction in (types.FLOAT32, param)

    lists = {"masters": masters, "params": params, "directions": directions}
    groups, rest = separate(native, lists, supported, {"masters", "params"})
    step = _Step(native, scales, (lr, lr_tensor), (weight_decay, weight_decay_tensor), ok)
    if rest:
        reference.apply_master_(
            at(masters, rest), at(params, rest), at(directions, rest), step.scales_at(rest), *step.lr, *step.weight_decay, ok,
        )  # fmt: skip
    for group in groups:
        of_masters, of_params, of_directions = group.addresses
        native.apply_master(
            of_masters, of_params, group.types[1], of_directions, group.types[2], group.sizes, list(group.positions),
            *step.arguments(),
        )  # fmt: skip


class _Sums:
    """Partial sums of a list of tensors on the device, those of a layer side by side, and their totals."""

    def __init__(
        self, native: Any, tensors: Sequence[Tensor], rest: Sequence[int], layers: Sequence[int] | None
    ) -> None:
        self.native, self.device = native, tensors[0].device
        elsewhere = set(rest)  # these have one sum each, from the reference
        own = range(len(tensors)) if layers is None else layers
        members: list[list[int]] = [[] for _ in range(max(own) + 1)]
        for position, layer in enumerate(own):
            members[layer].append(position)
        self.slot = [0] * len(tensors)  # of each tensor's first partial sum
        self.first = [0]  # partial sum of each layer, and the end
        end = 0
        for of_layer in members:
            for position in of_layer:
                self.slot[position] = end
                end += 1 if position in elsewhere else -(-tensors[position].numel() // native.PIECE_SIZE)
            self.first.append(end)
        self.partials = torch.empty(end, dtype=torch.float64, device=self.device)
        self.address = self.partials.data_ptr()

    def slots(self, group: Group) -> list[int]:
        """Where the kernels write the sums of the group's tensors."""
        return [self.slot[position] for position in group.positions]

    def set(self, positions: Sequence[int], sums: Tensor) -> None:
        """Take sums that were made elsewhere."""
        for position, value in zip(positions, sums.unbind(), strict=True):
            self.partials[self.slot[position]].copy_(value)

    def total(self) -> Tensor:
        """The sum of each layer, in the order of its partial sums."""
        out = torch.empty(len(self.first) - 1, dtype=torch.float64, device=self.device)
        self.native.segment_sums(self.first, self.address, out.data_ptr(), _cuda.where(out))
        return out


class _Step:
    """What the two forms of ``apply`` share. It keeps the tensors alive whose addresses it hands out."""

    def __init__(
        self,
        native: Any,
        scales: Tensor,
        lr: tuple[float, Tensor | None],
        weight_decay: tuple[float, Tensor | None],
        ok: Tensor | None,
    ) -> None:
        self.native, self.scales, self.lr, self.weight_decay, self.ok = (
            native,
            scales.resolve_neg().contiguous(),
            rate_beside(lr, scales.device),
            rate_beside(weight_decay, scales.device),
            ok,
        )

    def arguments(self) -> tuple[Any, ...]:
        """The last arguments of the native functions."""
        scale_type = native_type(self.native, self.scales.dtype)
        rates = self._rate(*self.lr), self._rate(*self.weight_decay)
        return self.scales.data_ptr(), scale_type, *rates, _address(self.ok), _cuda.where(self.scales)

    def scales_at(self, positions: Sequence[int]) -> Tensor:
        """The scales of some tensors, selected without an index that would have to be copied to the device."""
        return torch.stack([self.scales[i] for i in positions])

    def _rate(self, number: float, tensor: Tensor | None) -> tuple[float, int, Any]:
        """A number, or where the kernel finds it."""
        if tensor is None:
            return number, 0, self.native.Type.FLOAT64
        return 0.0, tensor.data_ptr(), native_type(self.native, tensor.dtype)


def _operands(group: Group) -> tuple[Any, ...]:
    """Addresses, types and sizes of a pair of lists, as every native function takes them first."""
    return group.addresses[0], group.types[0], group.addresses[1], group.types[1], group.sizes


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
