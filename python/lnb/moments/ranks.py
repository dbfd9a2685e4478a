"""Moments of all ranks of a group, added up by collectives: no rank sees more than its own samples, and all have the whole."""

from __future__ import annotations

import hashlib
import json
import reprlib
from typing import Any

import torch
import torch.distributed as dist

from lnb.moments.collection import InMemory, Moments
from lnb.moments.record import LayerMoment


def reduce_moments(moments: Moments, group: Any = None) -> Moments:
    """The moments of all samples that the ranks of ``group`` gathered; every rank calls this, and every rank gets them.

    It is :meth:`Moments.merge` over ranks: counts add up exactly, averages are weighted by them, and sums run in float64. Layer
    after layer is read, reduced and kept in memory; to have them in one file instead, save each rank's and merge the files.

    Args:
        moments: this rank's, of the same layers in the same blocks on all.
        group: a process group of torch.distributed; None for the default one.

    Returns:
        The moments, on the CPU.

    Raises:
        TypeError: ``moments`` are no :class:`Moments`.
        RuntimeError: torch.distributed is not initialised.
        ValueError: on all ranks, where these do not have the same layers in the same blocks, or the moment of one holds NaN,
            cannot be read, or does not say how many samples it is of.
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"moments={reprlib.repr(moments)} must be a Moments, not {type(moments).__name__}")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "reduce_moments: torch.distributed is not initialised; call init_process_group first, or merge() files of the ranks"
        )
    device = _device_of(group)
    _require_alike(moments, group, device)
    found = []
    for name, info in moments.infos.items():
        own, error = _read(moments, name)
        count = own.count.to(device, torch.float64)
        total = count.clone()
        dist.all_reduce(total, group=group)
        if bool(total.isnan().any()):  # on all ranks alike
            raise ValueError(
                f"layer {name!r}: the moment of a rank cannot be used: {error or 'another rank says why'}; nothing was reduced"
            ) from error
        share = count / total
        square = own.second_moment.to(device, torch.float64) * share.view(-1, 1, 1, 1)
        mean = own.mean.to(device, torch.float64) * share.view(-1, 1)
        dist.all_reduce(square, group=group)
        dist.all_reduce(mean, group=group)
        found.append(LayerMoment(info, square.to("cpu", info.dtype), mean.to("cpu", info.dtype), total.cpu()))
    return Moments(InMemory(found, moments.absent))


def _read(moments: Moments, name: str) -> tuple[LayerMoment, Exception | None]:
    """This rank's moment; where there is none, one of NaN, and the reason: all ranks must reach the same collective."""
    info = moments.infos[name]
    try:
        own = moments[name].check("gather or export it anew")
        if not bool(own.count.isnan().any()):
            return own, None
        raise ValueError("it is not known how many samples it is of; export it from the optimizer itself")
    except Exception as error:
        return LayerMoment(info, *(torch.full(shape, torch.nan).double() for shape in info.shapes.values())), error


def _require_alike(moments: Moments, group: Any, device: torch.device) -> None:
    """Compare what the ranks have, by a digest: the same collectives on all, whatever they have."""
    text = json.dumps([sorted(map(repr, (info.place for info in moments.infos.values()))), list(moments.infos)])
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    extremes = torch.tensor([digest, -digest], dtype=torch.int64, device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    if int(extremes[0]) != -int(extremes[1]):
        raise ValueError(
            f"reduce_moments: the ranks have moments of different layers, or in other blocks; this one has "
            f"{reprlib.repr(list(moments))}. Gather or export the same layers on all, with one block_size"
        )


def _device_of(group: Any) -> torch.device:
    """Where the group's backend takes tensors."""
    return (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    )
