"""Which route is cheaper: the rules that launchers and the planner share. Pure arithmetic, no GPU, no Triton."""

from __future__ import annotations

FEW_NEURONS = 32  # above, partial results and tf32 arithmetic cost more than the second reading of X that fusing saves
MOST_TAPS = 49  # of a depthwise kernel: above, tiles of tensor cores are faster although a group fills little of them
MOST_PLACES = (
    1 << 20
)  # taps times cells of the image: the host makes a table of them, of a 31 x 31 kernel in a tenth of a second
WIDEST_FUSED = 2048  # features: above, the samples in flight no longer fit L2 for their second use


def power_of_two(value: int, minimum: int = 16) -> int:
    """The next power of two, at least ``minimum`` (tensor cores take tiles of 16)."""
    return max(minimum, 1 << (max(value, 1) - 1).bit_length())


def fused_matvec_pays(d: int, m: int) -> bool:
    """Whether ``X'(X V)`` runs fused, ``X`` read from memory once: few neurons, and samples that L2 holds for their second use.

    Otherwise two plain products read ``X`` twice at the vendor's speed. Fused moves ``N d`` elements from memory and
    ``2 N d`` plus the partial results from L2, whose rate is about twice as high.
    """
    return 0 < m <= FEW_NEURONS and d <= WIDEST_FUSED


def symmetric_products_pay(size: int) -> bool:
    """Whether a symmetric product of ``size`` rows and columns runs by its lower tiles rather than as a plain product.

    With two blocks of 128 a quarter of the tiles is saved, with one nothing.
    """
    return size > 128


def shifts_pay(channels: int, kernel: tuple[int, int], cells: int) -> bool:
    """Whether a stride-1 convolution's second moment is formed from shifted products rather than implicit patches.

    Shifts issue ``((2 kh - 1)(2 kw - 1) + 1) / 2`` products of ``channels^2``, patches about
    ``(kh kw channels)^2 / 2``. Shifts need 16 channels to fill a tile, more than one tap, and workspace for every
    border cell that stays below 8 results. The host lists which taps reach which cells.
    """
    taps = kernel[0] * kernel[1]
    shifts = ((2 * kernel[0] - 1) * (2 * kernel[1] - 1) + 1) // 2
    return channels >= 16 and taps > 1 and cells * taps <= MOST_PLACES and cells * shifts <= 8 * taps * taps
