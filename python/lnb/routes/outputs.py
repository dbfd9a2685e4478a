"""The memory for the averaged gradients of a prepared step, where its directions then take their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lnb.layers.capture import statistics_dtype


class Outputs:
    """Addresses for every parameter: for those of layers in memory that is kept, for others in one piece of memory per dtype.

    Args:
        parameters: in the order of the step.
        kept: the memory of those of layers.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], kept: Mapping[nn.Parameter, Tensor]) -> None:
        self._addresses = [kept[p].data_ptr() if p in kept else 0 for p in parameters]
        self._sizes: dict[torch.dtype, int] = {}
        self._offsets: list[tuple[int, torch.dtype, int]] = []  # place, dtype, bytes
        for i, parameter in enumerate(parameters):
            if parameter not in kept:
                dtype = statistics_dtype(parameter.dtype)
                begin = self._sizes.get(dtype, 0)
                self._offsets.append((i, dtype, begin * dtype.itemsize))
                self._sizes[dtype] = begin + parameter.numel()

    def for_a_step(self) -> tuple[list[int], list[Tensor]]:
        """Every parameter's address, and the memory that has to be kept until the step is complete."""
        fresh = {dtype: torch.empty(size, dtype=dtype) for dtype, size in self._sizes.items()}
        begins = {dtype: memory.data_ptr() for dtype, memory in fresh.items()}
        addresses = self._addresses.copy()
        for i, dtype, offset in self._offsets:
            addresses[i] = begins[dtype] + offset
        return addresses, list(fresh.values())
