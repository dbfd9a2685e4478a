"""What lnb asks the machine: its processor, and where it may keep what it can make again."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch


@functools.cache
def processor() -> str:
    """The model of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/lnb``, else ``~/.cache/lnb``.

    Raises:
        RuntimeError: there is no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lnb"


@functools.lru_cache(maxsize=1)
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them such products are slower than float32's."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 has none
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
