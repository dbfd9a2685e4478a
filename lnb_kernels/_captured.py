"""Constants that live on a device: made once, cached, and kept for good where a CUDA graph has read them."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_MISSED = (
    "{}: a CUDA graph is being captured, and a constant that this call needs is not on its device yet ({}). Make the same call "
    "outside the capture before: run a few steps of the same kind on a side stream, as PyTorch's guide to CUDA graphs says"
)
_read_by_graphs: dict[int, Tensor] = {}


def device_constants(maxsize: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Cache what a function makes on a device: a tensor, or a tuple with tensors. The ``maxsize`` used last are kept.

    What a CUDA graph that is being captured will read at every replay is kept for good. Nothing is made while one is captured:
    a copy from the host would be of memory that is gone at the replay, and what is made there lives in the graph's own memory.

    Args:
        maxsize: number of results.

    Returns:
        A decorator of functions whose arguments are hashable and include the :class:`torch.device`. What they return raises
        ``RuntimeError`` for a result that is not cached while a graph is captured on its device.
    """

    def decorate(make: Callable[P, R]) -> Callable[P, R]:
        cache: OrderedDict[Any, R] = OrderedDict()
        lock = threading.Lock()  # backward passes run in threads of their own

        @functools.wraps(make)
        def cached(*args: P.args, **kwargs: P.kwargs) -> R:
            key = (args, tuple(kwargs.items()))
            capturing = is_capturing()
            with lock:
                if key not in cache:
                    if capturing and any(isinstance(value, torch.device) and value.type != "cpu" for value in args):
                        raise RuntimeError(_MISSED.format(make.__module__.partition(".")[0], make.__name__))
                    with torch.inference_mode(False):
                        cache[key] = make(*args, **kwargs)
                    if len(cache) > maxsize:
                        cache.popitem(last=False)
                cache.move_to_end(key)
                found = cache[key]
            if capturing:
                values = found if isinstance(found, tuple) else (found,)
                _read_by_graphs.update((id(value), value) for value in values if isinstance(value, Tensor))
            return found

        return cached

    return decorate


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream. No device is touched for it."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
