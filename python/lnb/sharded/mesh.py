"""Which ranks hold the parts of a model, and which of them count in a sum over all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor, Placement, Replicate

from lnb.distributed.failures import naming
from lnb.sharded.columns import UNFINISHED, Columns


class Ranks:
    """The ranks that hold shards or copies of a model's parameters, and those that see other samples.

    They are the ranks of one mesh, of which other parameters may have some of the dimensions: those of data parallelism
    (``fully_shard``: shards, and copies of shards) come first, those of tensor parallelism last.

    Args:
        model: with parameters that are ``DTensor``.
        given: a group of ranks with other samples, where ``fully_shard`` does not tell; None for none.

    Attributes:
        groups: over which sums are added, one after the other.
        size: the number of all ranks.
        data_size: the number of those that see other samples, as ``fully_shard`` tells.
        runs_on: the device of forward passes and exchanges where ``fully_shard`` offloads shards to the CPU; None where it does
            not.

    Raises:
        TypeError: parameters lie on meshes that are no part of one.
    """

    def __init__(self, model: nn.Module, given: Any) -> None:
        meshes = {p.device_mesh for p in model.parameters() if isinstance(p, DTensor)}
        self._mesh = max(meshes, key=lambda mesh: mesh.ndim)
        self._data = data = _data_meshes(model)
        self._data_dims = max((mesh.ndim for mesh in data), default=0)
        ranks = set(self._mesh.mesh.flatten().tolist())
        for mesh in meshes | data:
            if not set(mesh.mesh.flatten().tolist()) <= ranks or (mesh.ndim == self._mesh.ndim and mesh != self._mesh):
                raise TypeError(
                    f"model: parameters are sharded over a mesh of the ranks {self._mesh.mesh.tolist()} and over one of "
                    f"{mesh.mesh.tolist()}, which is no part of it; use one mesh, and slices of it, for all parameters that one "
                    f"LNB moves. Nothing was changed"
                )
        coordinate = self._mesh.get_coordinate()
        if coordinate is None:
            raise TypeError(
                f"model: this process, rank {dist.get_rank()}, is not in the mesh of the model's parameters, {self._mesh}"
            )
        self._coordinate = list(coordinate)
        self.groups = _groups(self._mesh)
        self.size = self._mesh.size()
        self.data_size = math.prod(self._mesh.shape[: self._data_dims])
        self.runs_on = _device_of_passes(model)
        self._copy = 0
        if given is not None and not self._data_dims:
            self._copy = given.rank()
            self.size *= given.size()
            self.groups += [given] if given.size() > 1 else []

    def sees_own_samples(self) -> bool:
        """Whether second moments of this rank count: among ranks with the same samples, those of the first do."""
        return not any(self._coordinate[self._data_dims :])

    def holds_first(self, parameter: Tensor) -> bool:
        """Whether this rank's part of ``parameter`` counts in sums over all parts: the first of its copies does."""
        return not self._copy and not any(
            place for dim, place in enumerate(self._coordinate) if dim not in self._sharded_dims(parameter)
        )

    def _sharded_dims(self, parameter: Tensor) -> set[int]:
        """The dimensions of the mesh over which ``parameter`` is cut."""
        if not isinstance(parameter, DTensor):
            return set()
        return {self._place(parameter, dim) for dim in sharded_dims(parameter)}

    def _place(self, parameter: DTensor, dim: int) -> int:
        """The dimension of the whole mesh that one of the parameter's own mesh corresponds to."""
        own = parameter.device_mesh
        return dim if own == self._mesh or own in self._data else self._mesh.ndim - own.ndim + dim

    def shares_samples(self, parameter: DTensor, dim: int) -> bool:
        """Whether ranks along a dimension of the parameter's mesh have other samples."""
        return self._place(parameter, dim) < self._data_dims

    def is_tensor_parallel(self, parameter: DTensor) -> bool:
        """Whether its layer's forward pass sees a ``DTensor``: it lies on dimensions other than those of ``fully_shard``."""
        return parameter.device_mesh not in self._data

    def add(self, values: Tensor) -> None:
        """Add ``values`` over all ranks, in place.

        Raises:
            RuntimeError: that failed, as where a rank has ended.
        """
        there = values if self.runs_on is None else values.to(self.runs_on)
        with naming("sums over the rows of layers", self.size, UNFINISHED):
            for group in self.groups:
                dist.all_reduce(there, group=group)
        if there is not values:
            values.copy_(there)


def sharded_dims(parameter: DTensor) -> list[int]:
    """The dimensions of its own mesh over which a parameter is cut."""
    return [dim for dim, placement in enumerate(parameter.placements) if not placement.is_replicate()]


def row_placements(parameter: DTensor) -> list[Placement]:
    """The placements of something that every row of a weight has: copies where columns are cut."""
    return [Replicate() if placement.is_shard(1) else placement for placement in parameter.placements]


def columns_of(parameter: Tensor) -> Columns | None:
    """The columns of a weight that are on this rank; None for all."""
    if not isinstance(parameter, DTensor):
        return None
    mesh = parameter.device_mesh
    for dim in sharded_dims(parameter):
        if parameter.placements[dim].is_shard(1) and mesh.size(dim) > 1:
            return Columns(mesh.get_group(dim), mesh.get_local_rank(dim), mesh.size(dim))
    return None


def data_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules of ``model`` that ``fully_shard`` was applied to."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _data_meshes(model: nn.Module) -> set[DeviceMesh]:
    """The meshes of ``fully_shard``."""
    return {group.mesh_info.mesh for group in _data_groups(model)}


def _device_of_passes(model: nn.Module) -> torch.device | None:
    """Where forward passes run if ``fully_shard`` keeps any shards on the CPU; None if it does not."""
    groups = _data_groups(model)
    offloaded = any(isinstance(group.offload_policy, CPUOffloadPolicy) for group in groups)
    device: torch.device | None = groups[0].device if offloaded else None
    return device


def _data_groups(model: nn.Module) -> list[Any]:
    """What ``fully_shard`` knows of the parameters that it shards together. PyTorch has no public way to ask for it."""
    found: list[Any] = []
    for module in data_modules(model):
        state = module._get_fsdp_state()
        several: Iterable[Any] = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        found += [group for group in several if group is not None]
    return found


def _groups(mesh: DeviceMesh) -> list[Any]:
    """One group of all ranks of ``mesh`` where there is one; else that of each dimension."""
    if mesh.size() == 1:
        return []
    if mesh.ndim == 1:
        return [mesh.get_group()]
    if mesh.size() == dist.get_world_size():
        return [dist.group.WORLD]
    return [mesh.get_group(dim) for dim in range(mesh.ndim) if mesh.size(dim) > 1]
