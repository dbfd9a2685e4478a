"""The op's lists as entries, one per parameter: what the reference and the CUDA kernel both start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lnb_kernels.multi_tensor.grouping import rate_beside

WRITTEN = ("params", "masters", "averages", "squares", "finite")
LISTS = (*WRITTEN, "directions", "row_scales", "gradients")
"""Lists of tensors of the op, in the order of its arguments."""


Rate = tuple[float, Tensor | None]
"""A number, and the tensor that stands in for it or None."""


class Entry(NamedTuple):
    """One parameter: a weight has ``row_scales``, an other parameter an ``average``, and a bias neither."""

    param: Tensor
    master: Tensor | None
    y: Tensor  # direction, or gradient of an other parameter
    row_scales: Tensor | None
    average: Tensor | None
    square: Tensor | None
    place: int
    number: int  # among the other parameters
    group: int

    @property
    def theta(self) -> Tensor:
        """What the step is added to."""
        return self.param if self.master is None else self.master


@dataclass(frozen=True)
class Numbers:
    """What all entries share: arguments of the op by their names."""

    scales: Tensor
    shorter: Tensor | None
    shares: Tensor | None
    corrections: Tensor | None
    lr: Sequence[Rate]
    weight_decay: Sequence[Rate]
    rule: Sequence[float]  # beta, take, b_others, epsilon
    finite: Tensor | None
    ok: Tensor | None

    def on_device(self) -> Numbers:
        """The same as kernels read them: one after the other, as they stand in memory, and rates on the device."""
        return replace(
            self,
            scales=self.scales.resolve_neg().contiguous(),
            shorter=_dense(self.shorter),
            shares=_dense(self.shares),
            corrections=_dense(self.corrections),
            lr=[rate_beside(rate, self.scales.device) for rate in self.lr],
            weight_decay=[rate_beside(rate, self.scales.device) for rate in self.weight_decay],
        )


def entries_of(
    lists: Mapping[str, Sequence[Tensor]], mastered: Sequence[int], places: Sequence[int], groups: Sequence[int]
) -> list[Entry]:
    """The entries: weights, biases, then other parameters, as they stand in ``params``.

    Args:
        lists: the op's, by their names.
        mastered: for each parameter, which of ``masters`` is its own; -1 for none.
        places, groups: of each parameter.
    """
    params, masters, averages, squares, _, directions, row_scales, gradients = (lists[name] for name in LISTS)
    owned = [None if k < 0 else masters[k] for k in mastered]
    weights, layers = len(row_scales), len(directions)
    made = [
        Entry(params[i], owned[i], directions[i], row_scales[i] if i < weights else None, None, None, places[i], 0, groups[i])
        for i in range(layers)
    ]  # fmt: skip
    made += [
        Entry(params[i], owned[i], gradients[k], None, averages[k], squares[k], places[i], k, groups[i])
        for k, i in enumerate(range(layers, len(params)))
    ]
    return made


def takes_memory(entry: Entry) -> bool:
    """Whether a kernel can read the entry's tensors side by side: in one order, without gaps, averages and masters in float32."""
    param, master, y, row_scales, average, square, *_ = entry
    beside = [tensor for tensor in (master, average, square) if tensor is not None]
    if not _read_side_by_side(param, y, beside) or any(tensor.dtype != torch.float32 for tensor in beside):
        return False
    if row_scales is None:
        return True
    rows_are_runs = param.is_contiguous() or len(param) == 1 or param.stride(0) == width_of(param)
    return row_scales.dtype == torch.float32 and is_kernel_memory(row_scales) and rows_are_runs


def width_of(weight: Tensor) -> int:
    """Entries of a row, at least 1."""
    return max(1, weight.numel() // max(1, len(weight)))


def is_kernel_memory(tensor: Tensor | None) -> bool:
    """Whether a kernel reads its memory as it is."""
    return tensor is None or (tensor.is_contiguous() and not tensor.is_neg())


def _read_side_by_side(param: Tensor, y: Tensor, beside: Sequence[Tensor]) -> bool:
    """Whether all have their entries in one order, without gaps."""
    if any(map(Tensor.is_neg, (param, y, *beside))):  # their memory holds entries with the other sign
        return False
    if param.is_contiguous():
        return y.is_contiguous() and all(map(Tensor.is_contiguous, beside))
    if torch._debug_has_internal_overlap(param) != 0:
        return False
    return all(tensor.shape == param.shape and tensor.stride() == param.stride() for tensor in (y, *beside))


def _dense(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.resolve_neg().contiguous()
