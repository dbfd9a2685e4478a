"""Predicted times of launches of the Gram kernel and of the vendor's products, by the model that picks our splits.

Both are costed alike (:mod:`lnb_kernels._triton.gram_cost`). The library takes tiles of 256 x 128, smaller ones where a matrix is
smaller, and the best number of splits up to 8. Pure arithmetic, no GPU, no Triton.
"""

from __future__ import annotations

import functools
import math

from lnb_kernels._triton.arch import Arch
from lnb_kernels._triton.crossover import power_of_two
from lnb_kernels._triton.gram_cost import LAUNCH, Part, Prediction, predict, programs_per_multiprocessor
from lnb_kernels._triton.gram_launch import GramPlan, gram_plan


def library(n: int, d: int, m: int, arch: Arch, multicast: bool = False, itemsize: int = 2) -> Prediction:
    """A plain product ``[m, n] [n, d]`` by the vendor's library."""
    rows, columns = min(256, power_of_two(m, 64)), min(128, power_of_two(d, 64))
    tiles = math.ceil(m / rows) * math.ceil(d / columns)
    memory = itemsize * (n * (d + m) + d * m)
    step = 128 // itemsize
    plans = [
        [Part(tiles * splits, math.ceil(n / splits), rows, columns, step, 1, tiles * splits if splits > 1 else 0, itemsize)]
        for splits in range(1, 9)
    ]  # fmt: skip
    return min((predict(plan, memory, arch, multicast) for plan in plans), key=lambda prediction: prediction.seconds)


def gram(
    n: int, d: int, m: int, arch: Arch, plan: GramPlan | None = None, blocks: int = 1, itemsize: int = 2
) -> Prediction:
    """The launches of ``[G | X 1]'X``, of each of ``blocks`` blocks of ``d`` columns of ``X``; ``m`` is 0 without ``G``."""
    plan = plan or gram_plan(n, d, m, itemsize, arch, blocks)
    shape = plan.block_i, plan.block_j, plan.block_n
    whole = plan.tiles == 1

    def together(staged: bool) -> int:
        return programs_per_multiprocessor(plan.block_i, plan.block_j, itemsize, staged, True, arch)

    first, shares = plan.head * plan.splits, plan.tail.programs
    staged = first if plan.staged else 0
    parts = [
        Part(
            first * blocks, plan.samples_per_split, *shape, together(plan.staged or shares > 0), staged * blocks, itemsize, whole
        ),
        Part(
            shares * blocks, plan.tail.share * plan.block_n, *shape, together(True), (plan.partials - staged) * blocks, itemsize,
            whole,
        ),
    ]  # fmt: skip
    # Sums of columns that are not part of the products read X (and G) once more.
    read = (1 if whole else 2) * itemsize * n * (d + m)
    return predict(parts, blocks * (read + 4 * d * d + itemsize * d * m), arch)


@functools.lru_cache(maxsize=1024)
def fused_backward_pays(n: int, d: int, m: int, itemsize: int, arch: Arch) -> bool:
    """Whether ``[G | X 1]'X`` in one launch beats ``G'X`` and ``sum G`` by the library, and a launch of ours for ``S``.

    Fused, ``X`` comes from memory once for all three, and there is one launch where there were three. Apart, the weight gradient
    has the library's large tiles. So it pays where the pass over ``X`` or the launches are what takes the time.

    Args:
        n, d, m: samples, the rows of ``X``, its columns, and those of ``G``.
        itemsize: bytes of an element of either.
        arch: what it runs on: its rates decide.
    """
    sums = LAUNCH + itemsize * n * m / arch.memory_rate
    apart = library(n, d, m, arch, itemsize=itemsize).seconds + sums + gram(n, d, 0, arch, itemsize=itemsize).seconds
    return gram(n, d, m, arch, itemsize=itemsize).seconds <= apart
