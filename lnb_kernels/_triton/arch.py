"""The GPUs that launch configurations are written for, and which of them a tensor lives on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Arch:
    """What the heuristics and the roofline model need to know. Rates are the vendors' peaks for dense operands."""

    name: str
    multiprocessors: int
    shared_bytes: int  # largest shared memory of one program
    l2_bytes: int
    memory_rate: float  # bytes per second
    half_rate: float  # FLOP/s, bf16 and fp16 with fp32 accumulation
    tf32_rate: float  # FLOP/s; 0 where tf32 is not supported
    ieee_rate: float  # FLOP/s, fp32
    bulk_copies: bool = False  # a copy engine that takes tensor descriptors (TMA)


ARCHS = {
    "sm_80": Arch("sm_80", 108, 163 << 10, 40 << 20, 1.555e12, 312e12, 156e12, 19.5e12),
    "sm_90": Arch("sm_90", 132, 227 << 10, 50 << 20, 3.35e12, 989e12, 495e12, 67e12, True),
    "sm_100": Arch("sm_100", 148, 227 << 10, 126 << 20, 8.0e12, 2250e12, 1100e12, 75e12, True),
    "gfx942": Arch("gfx942", 304, 64 << 10, 256 << 20, 5.3e12, 1307e12, 0.0, 163e12),
}

INTERPRETED = ARCHS["sm_90"]  # what CPU tensors under TRITON_INTERPRET=1 pretend to be


def nearest(capability: tuple[int, int]) -> Arch:
    """The newest of our CUDA architectures that is not newer than ``capability``; sm_80 for older ones."""
    if capability >= (10, 0):
        return ARCHS["sm_100"]
    return ARCHS["sm_90"] if capability >= (9, 0) else ARCHS["sm_80"]


@functools.cache
def _of_index(index: int) -> Arch:
    properties = torch.cuda.get_device_properties(index)
    known = ARCHS["gfx942"] if torch.version.hip else nearest((properties.major, properties.minor))
    # Consumer parts (sm_86, sm_89, sm_120) have about 100 KiB: their own limit, not that of the datacenter part, decides.
    shared = getattr(properties, "shared_memory_per_block_optin", known.shared_bytes)
    return replace(known, multiprocessors=properties.multi_processor_count, shared_bytes=int(shared))


def arch_of(device: torch.device) -> Arch:
    """The architecture of ``device`` with its own number of multiprocessors."""
    if device.type != "cuda":
        return INTERPRETED
    return _of_index(torch.cuda.current_device() if device.index is None else device.index)
