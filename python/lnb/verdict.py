"""The verdict on a step, whether it may change anything. It is reached on the device, and the host does not wait for it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """``value`` on ``device``, without waiting where that is safe.

    A copy to the host that does not block returns before the value is there, and the host would read what the memory held
    before. One to an accelerator comes before all that is queued there afterwards.
    """
    return value.to(device, non_blocking=device.type != "cpu")


class Verdict:
    """All inputs of a step are finite, or the step changes nothing.

    On the CPU the answer is known at once and a bad step is left early. On an accelerator it stays a tensor, and every
    write of the step is conditional on it (``ok`` in :mod:`lnb_kernels.multi_tensor`, :meth:`commit` elsewhere).
    """

    def __init__(self, ok: Tensor | bool, wait: bool = False) -> None:
        """Judge by ``ok`` (bool, ``[]``), or by what is known; ``wait`` for the device, to know the answer at once."""
        self.known = isinstance(ok, bool) or wait or ok.device.type == "cpu"
        self.rejected = self.known and not bool(ok)
        self._by_device: dict[torch.device, Tensor] = {}
        if not self.known:
            self._ok = cast(Tensor, ok)
            self._by_device[self._ok.device] = self._ok

    def on(self, device: torch.device) -> Tensor | None:
        """The condition for writes on ``device``; None where it is known to hold."""
        if self.known:
            return None
        if device not in self._by_device:
            self._by_device[device] = on_device(self._ok, device)
        return self._by_device[device]

    def commit(self, target: Tensor, value: Tensor, also: Tensor | None = None) -> None:
        """Write ``value`` into ``target``, if the verdict allows it (and where ``also`` holds)."""
        allowed = self.on(target.device)
        if allowed is None and also is not None and also.device.type == "cpu":
            if bool(also):  # nothing waits for a device
                target.copy_(value)
            return
        if also is not None:
            allowed = also if allowed is None else allowed & also
        if allowed is None:
            target.copy_(value)
        else:
            torch.where(allowed, value.to(target.dtype), target, out=target)

    def rejections(self) -> Tensor | int:
        """1 for a rejected step, else 0; a bool tensor where the device still has to tell."""
        return int(self.rejected) if self.known else ~self._ok
