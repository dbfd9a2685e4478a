"""The forward pass of a linear layer whose weight is a ``DTensor`` of rows, as tensor parallelism makes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

Project = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def project_rows(x: Tensor, weight: DTensor, bias: Tensor | None, project: Project) -> Tensor:
    """``x W' + b`` by rows of the weight: every rank makes the outputs of its rows, of the whole input.

    Nothing is exchanged but what brings ``x`` here, and the sum of its gradient over ranks.

    Args:
        x: ``[..., d_in]``, a ``DTensor`` on the mesh of ``weight``.
        weight: ``[d_out, d_in]``, in shards of rows.
        bias: ``[d_out]`` or None.
        project: makes the local output of local tensors.

    Returns:
        ``[..., d_out]``, in shards of its last dimension.

    Raises:
        TypeError: ``x`` is no ``DTensor``: the layer is called without the plan that ``parallelize_module`` gives it.
    """
    if not isinstance(x, DTensor):
        raise TypeError(
            f"the weight of a linear layer is placed as {weight.placements}, and its input is a {type(x).__name__}; call the "
            f"layer as parallelize_module(model, mesh, plan) prepares it, which makes a DTensor of the input"
        )
    mesh = weight.device_mesh
    everywhere = [Replicate()] * mesh.ndim
    if list(x.placements) != everywhere:
        x = x.redistribute(mesh, everywhere)
    cut = [not placement.is_replicate() for placement in weight.placements]
    summed: list[Placement] = [Partial() if is_cut else Replicate() for is_cut in cut]
    output = project(x.to_local(grad_placements=summed), weight.to_local(), _local(bias))
    shape = torch.Size((*x.shape[:-1], weight.shape[0]))
    placed: list[Placement] = [Shard(len(shape) - 1) if is_cut else Replicate() for is_cut in cut]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(output, mesh, placed, run_check=False, shape=shape, stride=stride)


def _local(bias: Tensor | None) -> Tensor | None:
    return bias.to_local() if isinstance(bias, DTensor) else bias
