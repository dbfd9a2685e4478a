"""The forward pass of a linear layer whose weight is a ``DTensor``, as tensor parallelism makes it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

Project = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def project_shards(x: Tensor, weight: DTensor, bias: Tensor | None, project: Project) -> Tensor:
    """``x W' + b`` by rows of the weight (:func:`project_rows`) or by its columns (:func:`project_columns`).

    Raises:
        TypeError: ``x`` is no ``DTensor``: the layer is called without the plan that ``parallelize_module`` gives it.
    """
    if not isinstance(x, DTensor):
        raise TypeError(
            f"the weight of a linear layer is placed as {weight.placements}, and its input is a {type(x).__name__}; call the "
            f"layer as parallelize_module(model, mesh, plan) prepares it, which makes a DTensor of the input"
        )
    by_columns = any(placement.is_shard(1) for placement in weight.placements)
    return (project_columns if by_columns else project_rows)(x, weight, bias, project)


def project_columns(x: DTensor, weight: DTensor, bias: Tensor | None, project: Project) -> Tensor:
    """``x W' + b`` where every rank has some columns of the weight, and computes what its inputs add to all outputs.

    Args:
        x: ``[..., d_in]``.
        weight: ``[d_out, d_in]``, in shards of columns.
        bias: ``[d_out]``, whole on every rank, or None.
        project: makes the local output of local tensors.

    Returns:
        ``[..., d_out]``, a sum over ranks that is still to be made.
    """
    mesh, last = weight.device_mesh, x.ndim - 1
    cut = [placement.is_shard(1) for placement in weight.placements]
    shares: list[Placement] = [Shard(last) if is_cut else Replicate() for is_cut in cut]
    if list(x.placements) != shares:
        x = x.redistribute(mesh, shares)
    output = project(x.to_local(), weight.to_local(), None)
    summed: list[Placement] = [Partial() if is_cut else Replicate() for is_cut in cut]
    if isinstance(bias, DTensor):  # a share of it on every rank, so that the sum has all of it, and so has its gradient
        shards = math.prod(mesh.size(dim) for dim, is_cut in enumerate(cut) if is_cut)
        output = output + bias.to_local(grad_placements=summed) / shards
    shape = torch.Size((*x.shape[:-1], weight.shape[0]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(output, mesh, summed, run_check=False, shape=shape, stride=stride)


def project_rows(x: DTensor, weight: DTensor, bias: Tensor | None, project: Project) -> Tensor:
    """``x W' + b`` by rows of the weight: every rank makes the outputs of its rows, of the whole input.

    Only ``x`` is exchanged, where it is not on every rank yet, and its gradient is summed over ranks.

    Args:
        x: ``[..., d_in]``, a ``DTensor`` on the mesh of ``weight``.
        weight: ``[d_out, d_in]``, in shards of rows.
        bias: ``[d_out]`` or None.
        project: makes the local output of local tensors.

    Returns:
        ``[..., d_out]``, in shards of its last dimension.
    """
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
