"""Constants that live on a device: made once, cached, and kept for good where a CUDA graph has read them."""

from __future__ import annotations

import torch
from torch import Tensor

_read_by_graphs: dict[int, Tensor] = {}


def keep_if_captured(*constants: Tensor) -> None:
    """Keep cached tensors that the CUDA graph being captured will read at every replay, whatever their cache forgets."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        _read_by_graphs.update((id(constant), constant) for constant in constants)
