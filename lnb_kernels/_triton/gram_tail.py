"""How the last tiles of a Gram launch are shared evenly among all programs that the GPU holds. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tail:
    """``groups`` of ``tiles`` tiles, each of ``steps`` steps over the samples; a group is cut into ``shares`` of ``share`` steps.

    With 72 tiles for 132 multiprocessors, six tiles make eleven shares: ``|a a b|b b c|...``; a tile is summed from two or
    three pieces, and every multiprocessor has 6/11 of a tile to do.
    """

    groups: int
    tiles: int
    shares: int
    share: int  # at most ``steps``, so that a share meets two tiles at most
    steps: int

    @property
    def programs(self) -> int:
        """Shares of all groups."""
        return self.groups * self.shares

    @property
    def common(self) -> int:
        """Steps after which shares and tiles of a group end together."""
        return min(math.lcm(self.share, self.steps), (1 << 31) - 1)  # kernels count steps in int32

    @property
    def pieces(self) -> int:
        """How many pieces the ends of tiles and shares cut a group into."""
        return self.shares + self.tiles - 1 - (self.tiles * self.steps - 1) // self.common


NO_TAIL = Tail(0, 1, 1, 1, 1)


def cut_tail(tiles: int, programs: int, steps: int) -> Tail | None:
    """``tiles`` of ``steps`` steps for ``programs`` programs, in as many groups as can be alike: fewer pieces of tiles.

    None if there are more tiles than programs, or 2^31 steps in a group.
    """
    if tiles == 0:
        return NO_TAIL
    if tiles > programs:
        return None
    groups = math.gcd(tiles, programs)
    share = math.ceil(tiles * steps / programs)
    if tiles // groups * steps + share >= 1 << 31:
        return None
    return Tail(groups, tiles // groups, math.ceil(tiles // groups * steps / share), share, steps)
