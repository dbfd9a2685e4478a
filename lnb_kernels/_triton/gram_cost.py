"""What launches of the Gram kernel cost, by a model: the launcher picks splits by it, ``bench/roofline.py`` prints it.

A part of a launch is a number of programs of some samples each. It takes whole turns: as many as the busiest multiprocessor
needs, each as long as the FLOPs of those samples of a whole tile (padding included) or their bytes from L2, and 1 us
to fill the pipeline for every tile that a program begins. Programs that share a multiprocessor share its rates, so
turns follow one another whether they overlap or not; sharing hides latency, which bounds small tiles. All parts
together take at least as long as the bytes from memory; then partial tiles are written and read, and the launch costs 4 us.
So does adding them: by few programs, each of which reads about ``2 sqrt(parts)`` tiles, or in a launch of its own.

Assumed: 60% of the peak of the matrix units, memory at its rate, L2 at 1.6 times that, partial tiles in L2 while they
fill less than half of it, 0.25 us for a step of a program that has nothing to wait for but its loads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lnb_kernels._triton.arch import Arch

REACHED, L2_OVER_MEMORY = 0.6, 1.6
LAUNCH, FILL, STEP = 4e-6, 1e-6, 0.25e-6  # seconds


def loads_take_few_registers(vectors: bool, descriptors: bool, arch: Arch) -> bool:
    """Whether loads, by ``vectors`` or by ``descriptors``, leave the registers that a second program needs: ``aligned`` below.

    On sm_100 the addresses of vectors take too many where finishing, too, needs some.
    """
    return vectors and (descriptors or arch.name != "sm_100")


def programs_per_multiprocessor(
    block_i: int, block_j: int, itemsize: int, staged: bool, aligned: bool, arch: Arch, whole: bool = False
) -> int:
    """Programs of the Gram kernel that share a multiprocessor, by registers and shared memory of the compiled code.

    ``bench/codegen.py --check`` compares with every compiled configuration. ``staged`` kernels only store their
    accumulators; the epilogue of the others, like addresses of single elements where samples are not ``aligned``, takes so
    many registers that a tile of 128 x 128 has a multiprocessor for itself; so do, on sm_100, the sums of columns that the
    programs of a ``whole`` matrix form.
    """
    if block_j == 128 and whole and arch.name == "sm_100":
        return 1
    if block_j == 128:
        return 2 if block_i == 128 and itemsize == 2 and staged and aligned and arch.bulk_copies else 1
    return {16: 8, 32: 4, 64: 2}[block_j]


@dataclass(frozen=True)
class Part:
    """``programs`` over ``samples`` samples of a tile ``block_i x block_j`` each, ``block_n`` samples a step.

    ``together`` programs share a multiprocessor; ``partials`` tiles go to the workspace, for a second kernel. Where
    there are more of these than programs, programs end one tile and begin another. A ``whole`` matrix in one tile is
    loaded once.
    """

    programs: int
    samples: int
    block_i: int
    block_j: int
    block_n: int
    together: int
    partials: int
    itemsize: int = 2
    whole: bool = False

    def bounds(self, arch: Arch) -> tuple[float, float]:
        """Seconds that arithmetic and L2 take, in whole turns."""
        full, rest = divmod(self.programs, self.together * arch.multiprocessors)
        turns = full * self.together + math.ceil(rest / arch.multiprocessors)
        everywhere = turns * arch.multiprocessors
        flops = everywhere * 2 * self.samples * self.block_i * self.block_j
        columns = self.block_j if self.whole else self.block_i + self.block_j
        loaded = everywhere * self.itemsize * self.samples * columns
        rate = arch.half_rate if self.itemsize == 2 else (arch.tf32_rate or arch.ieee_rate)
        return flops / (REACHED * rate), loaded / (L2_OVER_MEMORY * arch.memory_rate)

    def seconds(self, arch: Arch, multicast: bool = False) -> float:
        """Seconds of the whole part; with ``multicast`` L2 is no bound."""
        arithmetic, l2 = self.bounds(arch)
        waves = math.ceil(self.programs / (self.together * arch.multiprocessors))
        begun = 2 if self.partials > self.programs else 1
        latency = waves * math.ceil(self.samples / self.block_n) * STEP
        return max(arithmetic, latency, 0.0 if multicast else l2) + waves * begun * FILL

    def partial_bytes(self) -> int:
        """Bytes of the partial tiles."""
        return 4 * self.block_i * self.block_j * self.partials


@dataclass(frozen=True)
class Prediction:
    """Seconds of one launch sequence, and what bounds it."""

    seconds: float
    bound: str


def predict(parts: Sequence[Part], memory_bytes: float, arch: Arch, multicast: bool = False) -> Prediction:
    """The time of launches that compute ``parts`` one after the other."""
    parts = [part for part in parts if part.programs]
    bounds = [part.bounds(arch) for part in parts]
    products = sum(part.seconds(arch, multicast) for part in parts)
    memory = memory_bytes / arch.memory_rate
    limited = "arithmetic" if multicast or sum(a for a, _ in bounds) >= sum(b for _, b in bounds) else "L2"
    seconds = LAUNCH + max(products, memory)
    partial = sum(part.partial_bytes() for part in parts)
    if partial:
        seconds += LAUNCH + 2 * partial / (arch.memory_rate * (L2_OVER_MEMORY if partial < arch.l2_bytes / 2 else 1.0))
    return Prediction(seconds, "memory" if memory > products else limited)
