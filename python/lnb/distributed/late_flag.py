"""A finding of a device, which the host reads one step later."""

from __future__ import annotations

import torch
from torch import Tensor


class LateFlag:
    """A flag ``[]`` of an accelerator on its way to the host.

    Reading the flag itself would wait for all that was queued since, a whole forward and backward pass, and leave the device
    idle afterwards. This waits for the copy alone, which the device made before that.
    """

    def __init__(self, flag: Tensor) -> None:
        self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._host.copy_(flag, non_blocking=True)
        self._landed = torch.Event(device=flag.device)
        self._landed.record()

    def read(self) -> bool:
        """Its value."""
        self._landed.synchronize()
        return bool(self._host)
