"""Predicted times of the Gram kernels on an H100, and bytes moved by the CUDA kernels, from the launches they really make.

A model, not a measurement. The bytes are checked against what the kernels ask for in the tests' simulator of CUDA.

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


PIECE_SIZE, THREADS, TENSORS = 8192, 256, 320  # elements and threads of a block, tensors of a launch

# op: how often x, y and the 16-bit copy of x are read; likewise written; whether the op has sums, and a scale per tensor
MULTI_TENSOR = {
    "all_finite": ((1, 0, 0), (0, 0, 0), False, False),
    "ema_": ((1, 1, 0), (1, 0, 0), False, False),
    "ema_squared_norms_": ((1, 1, 0), (1, 0, 0), True, False),
    "dot": ((1, 1, 0), (0, 0, 0), True, False),
    "apply_": ((1, 1, 0), (1, 0, 0), False, True),
    "apply_master_": ((1, 1, 0), (1, 0, 1), False, True),
}


@dataclass(frozen=True)
class Traffic:
    """Bytes that a call's launches read and write, and the least that it could: each tensor read once, written once.

    ``repeated`` of the bytes read are what all threads of a block read alike, and only the first from memory.
    """

    launches: int
    read: int
    written: int
    minimum: int
    repeated: int = 0


def multi_tensor(op: str, sizes: list[int], x_width: int, y_width: int) -> Traffic:
    """A multi-tensor op on tensors of these sizes, of one dtype pair; element widths in bytes.

    Every block reads and writes its piece once; with sums it writes a partial one, which a second launch reads; and each
    of its threads reads its tensor's scale (from cache, but counted).
    """
    reads, writes, sums, scaled = MULTI_TENSOR[op]
    widths = (x_width, y_width, 2)
    elements = sum(sizes)
    blocks = sum(math.ceil(size / PIECE_SIZE) for size in sizes)
    read = elements * sum(times * width for times, width in zip(reads, widths, strict=True))
    written = elements * sum(times * width for times, width in zip(writes, widths, strict=True))
    minimum = read + written
    launches = math.ceil(sum(size > 0 for size in sizes) / TENSORS)
    if sums:
        launches += math.ceil(len(sizes) / TENSORS)
        read, written = read + 8 * blocks, written + 8 * blocks + 4 * len(sizes)
    if scaled:
        read += 4 * THREADS * blocks
    return Traffic(launches, read, written, minimum)


def pcg_step(m: int, columns: int) -> Traffic:
    """All vectors of one step of CG with a unit per row: reads ``p, A p, h, r``, writes ``h, r, p`` and 3 sums of a row.

    Each thread reads three sums of its row, one of them twice (from cache, but counted).
    """
    vector = 4 * m * columns
    threads = 128 if columns <= 1024 else 256
    shared = 8 * 4 * m
    return Traffic(1, 4 * vector + threads * shared, 3 * vector + 8 * 3 * m, 7 * vector, (threads - 1) * shared)


def main() -> None:
    print_traffic()
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


def print_traffic() -> None:
    sizes = [768 * 768] * 150 + [768] * 150
    print("Bytes of the CUDA kernels for 300 tensors of 88 M elements in all, and over the least possible\n")
    for op in MULTI_TENSOR:
        for label, x_width, y_width in (("float32", 4, 4), ("float32 and 16 bits", 4, 2), ("16 bits", 2, 2)):
            if op == "apply_master_" and x_width == 2:
                continue  # masters are float32
            traffic = multi_tensor(op, sizes, x_width, y_width)
            moved = traffic.read + traffic.written
            print(
                f"{op + ' ' + label:40s} {moved / 1e6:8.1f} MB {moved / traffic.minimum:6.3f}  {traffic.launches} launches"
            )
    print()


if __name__ == "__main__":
    main()
