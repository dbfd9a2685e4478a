"""Predicted times of the Gram kernels on an H100, from the launches they really make. A model, not a measurement.

    python bench/roofline.py

For each launch: FLOPs of the issued tiles (padding included), bytes from memory and from L2, and a time that is the
largest of the three over their rates. Assumed: 60% of the tensor-core peak is reached by both our loop and the library
product that it is compared with (which issues the full square), memory at its rate, L2 at 1.6 times that, 4 us per
launch, and whole waves of two programs per multiprocessor. The library is given its operands from L2 for free, as its
clusters share them; tiles of 128 x 128 are not, and L2 is what bounds them. The floor is the ideal work, half a square,
at full peak.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from lnb_kernels._triton.arch import ARCHS, Arch  # noqa: E402
from lnb_kernels._triton.gram_launch import GramPlan, gram_plan  # noqa: E402

REACHED, L2_OVER_MEMORY, LAUNCH, PROGRAMS = 0.6, 1.6, 4e-6, 2


@dataclass(frozen=True)
class Prediction:
    """Seconds of one launch sequence, and what bounds it."""

    seconds: float
    bound: str
    floor: float


def library_seconds(n: int, d: int, m: int, arch: Arch) -> float:
    """A plain product ``[m, n] [n, d]`` in bf16 by the vendor's library, tiles of 128 x 256 in whole waves."""
    tiles = math.ceil(m / 128) * math.ceil(d / 256)
    splits = max(1, arch.multiprocessors // tiles)
    waves = math.ceil(tiles * splits / arch.multiprocessors) / splits
    arithmetic = waves * arch.multiprocessors * 2 * n * 128 * 256 / (REACHED * arch.half_rate)
    return LAUNCH + max(arithmetic, 2 * (n * (d + m) + d * m) / arch.memory_rate)


def gram(n: int, d: int, m: int, arch: Arch, plan: GramPlan | None = None) -> Prediction:
    """The launches of ``[G | X 1]'X`` in bf16: products, sums of columns, and the addition of splits."""
    plan = plan or gram_plan(n, d, m, 2, arch)
    slots = PROGRAMS * arch.multiprocessors
    waves = math.ceil(plan.tiles * plan.splits / slots)
    flops = waves * slots * 2 * plan.rows_per_split * plan.block_d**2
    result = 4 * plan.block_d**2 * plan.tiles
    times = {
        "arithmetic": flops / (REACHED * arch.half_rate),
        "memory": (2 * n * (d + m) + 2 * result) / arch.memory_rate,
        "L2": 4 * n * plan.block_d * plan.tiles / (L2_OVER_MEMORY * arch.memory_rate),
    }
    bound = max(times, key=lambda name: times[name])
    seconds = LAUNCH + times[bound]
    if plan.splits > 1:
        seconds += LAUNCH + result * (2 * plan.splits + 2) / (L2_OVER_MEMORY * arch.memory_rate)
    floor = max(n * d * (d + 2 * m) / arch.half_rate, 2 * n * (d + m) / arch.memory_rate)
    return Prediction(seconds, bound, floor)


def main() -> None:
    arch = ARCHS["sm_90"]
    print("PREDICTED by a model for H100, bf16; nothing here was measured\n")
    print(f"{'kernel':38s} {'us':>8s} {'bound':>11s} {'x floor':>8s} {'x library product':>18s}")
    for n, d in ((16384, 256), (16384, 1024), (16384, 2048), (16384, 4096), (65536, 2048)):
        for name, m in (("second_moment", 0), ("linear_backward, m = d", d)):
            predicted = gram(n, d, m, arch)
            library = library_seconds(n, d, d, arch)
            print(
                f"{f'{name} N={n} d={d}':38s} {1e6 * predicted.seconds:8.1f} {predicted.bound:>11s}"
                f" {predicted.seconds / predicted.floor:8.2f} {predicted.seconds / library:18.2f}"
            )


if __name__ == "__main__":
    main()
