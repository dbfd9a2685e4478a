"""Which generator makes the cases of which public function. The list of functions is the package's own."""

from __future__ import annotations

from collections.abc import Callable

from fuzz import ops_conv, ops_fused, ops_layers, ops_multi_tensor, ops_products, ops_settings, ops_solvers
from fuzz.case import Case
from fuzz.draw import Draw

import lnb_kernels as lk

GENERATORS: dict[str, Callable[[Draw], Case]] = {
    **ops_multi_tensor.GENERATORS,
    **ops_products.GENERATORS,
    **ops_conv.GENERATORS,
    **ops_layers.GENERATORS,
    **ops_solvers.GENERATORS,
    **ops_settings.GENERATORS,
    **ops_fused.GENERATORS,
}
OF_THE_OPTIMIZER = frozenset(ops_fused.GENERATORS)
"""Ops that only the optimizer calls."""
RARE = frozenset(ops_settings.GENERATORS)  # there is little to try of them


def public_functions() -> set[str]:
    """Every function that a user may call, by its name within the package."""
    named = {name for name in lk.__all__ if name != "multi_tensor"}
    return named | {f"multi_tensor.{name}" for name in lk.multi_tensor.__all__}


def case_of(seed: int, only: str | None = None) -> Case:
    """The case of a seed, the same in every process; or one of this op."""
    draw = Draw(seed)
    if only is None:
        usual = sorted(GENERATORS.keys() - RARE)
        only = draw.random.choice(sorted(RARE) if draw.chance(0.005) else usual)
    return GENERATORS[only](draw)
