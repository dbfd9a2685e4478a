"""Predicted times of the Gram kernels on an H100, and bytes moved by the CUDA kernels, from the launches they really make.

A model, not a measurement. The bytes are checked against what the kernels ask for in the tests' simulator of CUDA.

    python bench/roofline.py

Both sides, our launch and the library's full product that it is compared with, are costed alike, by the model that also
picks our splits: :mod:`lnb_kernels._triton.gram_prediction`. The library takes tiles of 256 x 128 and the best number of
splits up to 8; a second figure frees it from the L2 bound, as its clusters share operands. The floor is the ideal work, half a
square for ``S``, at full peak.

What cannot be reached: see :func:`tile_floor`, printed as a column. At N = 16384, d = 2048 the 72 tiles are fewer than the
multiprocessors, so they are shared (:mod:`lnb_kernels._triton.gram_tail`); the 192 partial tiles, 25 MB written and read, and
adding them takes 0.04 of the library's time.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from lnb_kernels._triton.arch import ARCHS, Arch  # noqa: E402
from lnb_kernels._triton.gram_prediction import fused_backward_pays, gram, library  # noqa: E402

SIZE = 2  # bytes of an operand


def floor_seconds(n: int, d: int, m: int, arch: Arch) -> float:
    """The ideal work at full peak."""
    return max(n * d * (d + 2 * m) / arch.half_rate, SIZE * n * (d + m) / arch.memory_rate)


def tile_floor(d: int, m: int) -> float:
    """FLOPs of the tiles of 256 x 128 over those of the library's ``[d, n] [n, d]``: no schedule is below
    where the library keeps the GPU busy (d >= 2048).

    With ``b = d / 256`` the library takes ``2 b^2`` tiles, ``S`` takes ``b (b + 1)``: ``(1 + 1 / b) / 2``. The weight gradient
    at ``m = d`` is the library's product and adds 1: ``3 N d^2`` FLOPs against ``2 N d^2``, so never below 1.5.
    """
    rows = math.ceil(d / 256)
    return rows * (rows + 1) / (rows * math.ceil(d / 128)) + math.ceil(m / 256) / rows


PIECE_SIZE, THREADS, TENSORS = 8192, 256, 320  # elements and threads of a block, tensors of a launch

# op: how often x (or what is like it), y and the 16-bit copy of x are read; likewise written; whether the op has sums,
# and a scale per tensor
MULTI_TENSOR = {
    "all_finite": ((1, 0, 0), (0, 0, 0), False, False),
    "ema_combined_": ((1, 1, 0), (2, 0, 0), False, True),
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
        read, written = read + 8 * blocks, written + 8 * blocks + 8 * len(sizes)
    if scaled:
        read += 4 * THREADS * blocks
    return Traffic(launches, read, written, minimum)


def pcg_step(m: int, columns: int) -> Traffic:
    """All vectors of one step of CG with a unit per row: reads ``p, A p, h, r``, writes ``h, r, p`` and 3 sums of a row.

    Each thread reads three sums of its row, one of them twice (from cache, but counted).
    """
    vector = 4 * m * columns
    threads = 160 if columns <= 1277 else 352
    shared = 8 * 4 * m
    return Traffic(1, 4 * vector + threads * shared, 3 * vector + 8 * 3 * m, 7 * vector, (threads - 1) * shared)


def main() -> None:
    print_traffic()
    arch = ARCHS["sm_90"]
    print(
        "PREDICTED by a model for H100, bf16; nothing here was measured. Full product by the library: [d, N] [N, d]\n"
    )
    print(
        f"{'kernel':40s} {'us':>8s} {'bound':>11s} {'x floor':>8s} {'x library':>10s} {'x multicast library':>20s}"
        f" {'floor of tiles':>15s}"
    )
    for n, d in ((16384, 128), (16384, 256), (16384, 1024), (16384, 2048), (16384, 4096), (65536, 2048), (8192, 8192)):
        for name, m in (("second_moment", 0), ("linear_backward, m = d", d)):
            ours = gram(n, d, m, arch)
            ratios = [ours.seconds / library(n, d, d, arch, multicast).seconds for multicast in (False, True)]
            print(
                f"{f'{name} N={n} d={d}':40s} {1e6 * ours.seconds:8.1f} {ours.bound:>11s}"
                f" {ours.seconds / floor_seconds(n, d, m, arch):8.2f} {ratios[0]:10.2f} {ratios[1]:20.2f}"
                f" {f'{tile_floor(d, m):.3f}' if d >= 2048 else '':>15s}"
            )
    print(
        "\nThe fused backward at m = d issues 3 N d^2 FLOPs where the weight gradient issues 2 N d^2: at equal rates it takes at"
        "\nleast 1.5 times as long, and 1.5 + 128 / d in tiles of 256 x 128. A ratio of 1.35 is below that floor."
    )
    print_decisions()
    print_blocks(arch)


def print_decisions() -> None:
    """Where the backward pass of a linear layer is one launch, by the rates of each architecture."""
    print(
        "\nWeight gradient, bias gradient and second moment in one launch (1) or apart (0), bf16 and fp32, N rows, d x m\n"
    )
    shapes = [(128, 512), (768, 768), (768, 3072), (3072, 768), (1024, 1024), (2048, 2048), (4096, 4096)]
    print(f"{'':24s}" + "".join(f"{f'{d} x {m}':>13s}" for d, m in shapes))
    for name, arch in ARCHS.items():
        for n in (1024, 16384, 131072):
            chosen = [[int(fused_backward_pays(n, d, m, size, arch)) for size in (2, 4)] for d, m in shapes]
            print(f"{f'{name} N={n}':24s}" + "".join(f"{f'{half} {full}':>13s}" for half, full in chosen))


def print_blocks(arch: Arch) -> None:
    """Second moments of diagonal blocks, what the default preset keeps: bound by the bytes of X, read once."""
    print(
        "\nPREDICTED likewise: second moments of the blocks of 128 columns. Floor: X from memory once, at its full rate\n"
    )
    for n, d in ((16384, 512), (16384, 2048), (65536, 768), (65536, 3072)):
        ours, floor = gram(n, 128, 0, arch, blocks=d // 128), SIZE * n * d / arch.memory_rate
        print(
            f"{f'second_moment N={n} d={d} blocks={d // 128}':44s} {1e6 * ours.seconds:8.1f} us {ours.bound:>11s}"
            f" {ours.seconds / floor:6.2f} x floor"
        )


def print_traffic() -> None:
    sizes = [768 * 768] * 150 + [768] * 150
    print("Bytes of the CUDA kernels for 300 tensors of 88 M elements in all, and over the least possible\n")
    for op in MULTI_TENSOR:
        for label, x_width, y_width in (("float32", 4, 4), ("float32 and 16 bits", 4, 2), ("16 bits", 2, 2)):
            if op in ("apply_master_", "ema_combined_") and x_width == 2:
                continue  # they write float32
            traffic = multi_tensor(op, sizes, x_width, y_width)
            moved = traffic.read + traffic.written
            print(
                f"{op + ' ' + label:40s} {moved / 1e6:8.1f} MB {moved / traffic.minimum:6.3f}  {traffic.launches} launches"
            )
    traffic = pcg_step(768, 769)
    moved = traffic.read + traffic.written - traffic.repeated
    print(
        f"{'vectors of a CG step, 768 rows of 769':40s} {moved / 1e6:8.1f} MB {moved / traffic.minimum:6.3f}  1 launch"
    )
    print()


if __name__ == "__main__":
    main()
