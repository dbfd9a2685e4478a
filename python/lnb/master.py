"""Float32 master weights of 16-bit parameters: steps too small for the parameter add up in its master."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lnb.config import Config

_BITS_16 = (torch.bfloat16, torch.float16)
_written: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter: its version after the last step


def has_master(parameter: Tensor, config: Config) -> bool:
    """Whether the parameter moves through a float32 master."""
    return config.master_weights and parameter.dtype in _BITS_16


def masters_of(parameters: list[nn.Parameter], states: Any) -> list[Tensor]:
    """The masters, ``"master"`` in each parameter's state; at first the parameters themselves.

    Where a parameter was written by someone else since its last step - a checkpoint, an initialisation, a clamp - its
    master takes over the entries that are not its own rounding, without waiting for the device. Writes through ``.data``
    are not noticed.
    """
    for parameter in parameters:
        state = states[parameter]
        if "master" not in state:
            state["master"] = parameter.detach().float()
        elif _written.get(parameter) != parameter._version:
            master = state["master"]
            kept = master.to(parameter.dtype) == parameter
            torch.where(kept, master, parameter.float(), out=master)
    return [states[parameter]["master"] for parameter in parameters]


def remember(parameters: list[nn.Parameter]) -> None:
    """The parameters now are their masters' roundings."""
    for parameter in parameters:
        _written[parameter] = parameter._version
