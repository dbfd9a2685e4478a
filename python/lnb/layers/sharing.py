"""One second moment for the layers that a forward pass gives the very same tensor: projections of attention, gated MLPs."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lnb.layers.capture import Capture
from lnb_kernels.linear import SharedMoment

_SEEN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""For an input, the setting that the layers that share its moment have in common, and the moment, which their graph keeps."""


def moment_of(x: Tensor, capture: Capture, probe: Tensor | None) -> SharedMoment | None:
    """What the layer of ``capture`` shares with the others that are given the tensor ``x``; None to gather a moment alone.

    Layers share a moment if they see the same tensor object before a backward pass reaches one of them, and read it in the same
    way. (That it was not written in between, autograd checks: each of them has saved it.) Every use of a layer gets the moment:
    all its samples count. Compiled and traced code gathers alone, because what it does is fixed before the tensors are known.

    Args:
        x: the input, before autocast.
        capture: the layer's.
        probe: what the layer's op is given.
    """
    if probe is None or not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return None
    if type(x) not in (Tensor, nn.Parameter):
        return None
    conditions = (probe.shape, probe.dtype, *capture.reads, _autocast_dtype(x.device), _stream(x.device))
    seen = _SEEN.get(x)
    moment: SharedMoment | None = None if seen is None or seen[0] != conditions else seen[1]()
    if moment is None or not moment.is_open:
        moment = SharedMoment()
        _SEEN[x] = conditions, weakref.ref(moment)
    return moment


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def _stream(device: torch.device) -> int:
    """Where the layer's backward pass will run: another stream would have to wait for the moment."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
