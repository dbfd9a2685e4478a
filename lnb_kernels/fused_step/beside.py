"""Directions of layers with larger blocks than the CUDA module takes: by Triton's kernel, where there is one."""

from __future__ import annotations

from collections.abc import Sequence

from lnb_kernels import _backend
from lnb_kernels.fused_step.layers import LARGEST_TRITON, DirectArguments, DirectLayer, is_served


def direct_by_triton_(layers: Sequence[DirectLayer], served: Sequence[bool], given: DirectArguments) -> list[bool]:
    """Directions by Triton of layers that the CUDA module's kernel has not ``served``; returns which layers are served then."""
    largest = [mine or not is_served(layer, LARGEST_TRITON) for layer, mine in zip(layers, served, strict=True)]
    if all(largest) or not _backend.serves_beside("direct_layers_", given.partials.device):
        return list(served)
    route = _backend.routes()["direct_layers_"]
    from lnb_kernels.fused_step.triton_kernel import direct_some_

    try:
        direct_some_(layers, [not other for other in largest], given)
    except _backend.KernelUnavailable as error:
        _backend.give_up(route, "triton", error, lambda: "reference")
        return list(served)
    return [mine or not other for mine, other in zip(served, largest, strict=True)]
