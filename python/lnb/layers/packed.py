"""The captures of an in-projection whose one weight holds those of query, key and value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lnb.layers.capture import Capture, Samples

# which of the rows of query, key and value an in-projection's second moment belongs to
SERVES = {"qkv": (0, 1, 2), "q": (0,), "k": (1,), "v": (2,), "kv": (1, 2)}


class PackedCapture(Capture):
    """The captures of a packed in-projection: one for each set of matrices that can share an input."""

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        self.parts = {name: Capture(d_in) for name in SERVES}

    def switch(self, weight: Tensor, *, moments: bool, channels: bool, inputs: bool, blocks: int = 1) -> None:
        """Switch all parts. They gather second moments also where inputs are wanted, which do not stack."""
        self.moments_on = moments or inputs
        for part in self.parts.values():
            part.switch(weight, moments=self.moments_on, channels=False, inputs=False, blocks=blocks)

    def read(self, weight: Tensor, start: float, sample_every: int, moment_dtype: torch.dtype | None) -> None:
        """Use the same setting for all parts."""
        for part in self.parts.values():
            part.read(weight, start, sample_every, moment_dtype)

    def follow(self, weight: Tensor) -> None:
        """Bring the probes to the device and dtype of ``weight``."""
        for part in self.parts.values():
            part.follow(weight)

    def count_samples(self, on: bool) -> None:
        """Use the same setting for all parts."""
        for part in self.parts.values():
            part.count_samples(on)

    def counted(self) -> Samples:
        """The samples of the queries."""
        query = [self.parts[name] for name in ("qkv", "q")]
        return Samples(sum(part.samples for part in query), any(part.input_grad for part in query))

    def live_captures(self) -> Iterator[Capture]:
        """All parts."""
        yield from self.parts.values()

    @property
    def rests(self) -> bool:
        """Whether all parts are idle, and keep nothing from before."""
        return super().rests and all(part.rests for part in self.parts.values())

    @property
    def moments(self) -> Tensor | None:
        """The second moments of the inputs of query, key and value, ``[3, blocks, size+1, size+1]``.

        Those of keys and values are scaled to the number of samples of the queries: one count serves all three.
        """
        found = {name: part.moments for name, part in self.parts.items() if part.moments is not None}
        if found.keys() <= {"qkv"}:
            return found["qkv"].expand(3, -1, -1, -1) if found else None
        each = [_total([s for name, s in found.items() if i in SERVES[name]]) for i in range(3)]
        zero = torch.zeros_like(next(iter(found.values())))
        stacked = torch.cat([zero if s is None else s for s in each])
        count = stacked[:, :1, -1:, -1:]
        return stacked * (count[0] / count.clamp(min=1))

    @property
    def gathered(self) -> bool:
        """Whether a backward pass left something in any part."""
        return any(part.gathered for part in self.parts.values())

    def clear(self) -> None:
        """Forget everything gathered so far."""
        for part in self.parts.values():
            part.clear()

    def __getstate__(self) -> dict[str, Any]:
        return PackedCapture(self.d_in).__dict__


def _total(moments: list[Tensor]) -> Tensor | None:
    return torch.stack(moments).sum(0) if moments else None
