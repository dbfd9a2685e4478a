"""What a call did to memory, bit by bit: also to the gaps of strided tensors, and beyond their ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from fuzz.builders import Wrapper
from fuzz.case import Values, entries
from torch import Tensor


def tensors_of(values: Values, names: Iterable[str] | None = None) -> Iterable[tuple[str, Tensor]]:
    """The dense CPU tensors within the arguments, by the text that leads to them."""
    for name in values if names is None else names:
        for where, entry in entries(name, values[name]):
            inner = entry.held if isinstance(entry, Wrapper) else entry
            if isinstance(inner, Tensor) and inner.device.type == "cpu" and inner.layout == torch.strided:
                yield where, inner


def _bytes(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


class Snapshot:
    """The bytes of every argument's memory before a call."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._before: dict[int, tuple[str, Tensor, Tensor]] = {}
        for name, tensor in tensors_of(values):
            address = tensor.untyped_storage().data_ptr()
            if address and address not in self._before:
                now = _bytes(tensor)
                self._before[address] = (name, now, now.clone())

    def changed(self) -> list[str]:
        """The arguments whose memory is not what it was."""
        return [name for name, now, before in self._before.values() if not torch.equal(now, before)]

    def changed_beside(self, written: Iterable[str]) -> list[str]:
        """The arguments whose memory changed where no written tensor has an entry."""
        found = []
        changed = set(self.changed())
        if not changed:
            return []
        owned: dict[int, Tensor] = {}
        for _, tensor in tensors_of(self._values, written):
            address = tensor.untyped_storage().data_ptr()
            if address not in self._before:
                continue
            mask = owned.setdefault(address, torch.zeros_like(self._before[address][1], dtype=torch.bool))
            width = tensor.element_size()
            strides = (*(stride * width for stride in tensor.stride()), 1)
            mask.as_strided((*tensor.shape, width), strides, tensor.storage_offset() * width).fill_(True)
        for address, (name, now, before) in self._before.items():
            if name not in changed:
                continue
            differs = now != before
            if address in owned:
                differs &= ~owned[address]
            if bool(differs.any()):
                found.append(name)
        return found


def difference(got: Any, want: Any, allowed: Any) -> str | None:
    """What is wrong with a result, or None.

    Entries whose right value is not finite must not be finite either; entries whose allowed error is infinite are free, and
    those for which it is beyond the dtype's numbers, whose sums on the way may be infinite.
    """
    if not isinstance(want, Tensor):
        return None if got == want and type(got) is type(want) else f"is {got!r}, must be {want!r}"
    if not isinstance(got, Tensor):
        return f"is {type(got).__name__}, must be a tensor"
    if got.shape != want.shape:
        return f"has shape {tuple(got.shape)}, must have {tuple(want.shape)}"
    if isinstance(allowed, str):  # to the bit
        if got.dtype != want.dtype:
            return f"has dtype {got.dtype}, must have {want.dtype}"
        same = (got == want) | (got.isnan() & want.isnan())
        count = int((~same).sum())
        return f"differs in {count} of {want.numel()} entries from what it must equal to the bit" if count else None
    if want.numel() == 0:
        return None
    free = torch.isinf(allowed)
    if got.is_floating_point():
        free = free | (allowed > torch.finfo(got.dtype).max)
    got = got.double()
    finite = want.isfinite()
    wrong = torch.where(finite, ~((got - want).abs() <= allowed), got.isfinite()) & ~free
    if not bool(wrong.any()):
        return None
    place = tuple(int(i) for i in wrong.nonzero()[0])
    bound = allowed.expand_as(want)[place]
    return (
        f"{int(wrong.sum())} of {want.numel()} entries wrong; at {list(place)} {float(got[place])!r}, must be "
        f"{float(want[place])!r} within {float(bound)!r}"
    )
