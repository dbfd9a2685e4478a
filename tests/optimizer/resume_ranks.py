"""What each of the eight processes of ``test_resume_ranks.py`` does: a module that a spawned process can import."""

from __future__ import annotations

import copy
import datetime
import functools
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from optimizer.rank_training import LR as WHOLE_LR
from optimizer.rank_training import Network
from optimizer.rank_training import trained as trained_whole
from optimizer.shard_training import CASES, LR, averages, sharded, trained
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

import lnb

NUMBERS = (1, 2, 4, 8)
NAME = "uneven"  # of eight ranks some have no row of a layer
SAVED_AT, ENDED_AT = 2, 4


def run_rank(rank: int, ranks: int, folder: Path) -> None:
    """Save on the first 1, 2, 4 and 8 ranks, and resume what each of them saved on each of them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),  # what hangs, fails
    )
    meshes = {number: DeviceMesh("cpu", list(range(number))) for number in NUMBERS}
    found: dict[str, Any] = {"saved": {}, "ended": {}, "resumed": {}}
    for number in (n for n in NUMBERS if rank < n):
        model, optimizer = _made(meshes[number])
        trained(model, optimizer, rank, number, steps=(0, SAVED_AT))
        write = functools.partial(dcp.save, process_group=meshes[number].get_group())
        write(_state(model, optimizer), checkpoint_id=folder / f"saved{number}")
        found["saved"][number] = _averages(model, optimizer)
        if number == 2:
            local = copy.deepcopy(optimizer.state_dict())
        found["ended"][number] = trained(model, optimizer, rank, number, steps=(SAVED_AT, ENDED_AT))
    dist.barrier()
    for number in (n for n in NUMBERS if rank < n):
        for before in NUMBERS:
            model, optimizer = _made(meshes[number])
            state = _state(model, optimizer)
            dcp.load(state, checkpoint_id=folder / f"saved{before}", process_group=meshes[number].get_group())
            model.load_state_dict(state["model"])
            set_optimizer_state_dict(model, optimizer, state["optimizer"])
            resumed = _averages(model, optimizer)
            ended = trained(model, optimizer, rank, number, steps=(SAVED_AT, ENDED_AT))
            found["resumed"][before, number] = resumed, ended
    if rank < 2:
        found["refused"] = [_refused(_made(meshes[4])[1], local), _refused(lnb.LNB(CASES[NAME][0]().double()), local)]
    wrapped = DistributedDataParallel(Network().double())
    found["whole"] = trained_whole(wrapped, lnb.LNB(wrapped, WHOLE_LR), rank, ranks)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def _made(mesh: DeviceMesh) -> tuple[torch.nn.Module, lnb.LNB]:
    make, settings = CASES[NAME]
    model = sharded(make().double(), mesh=mesh)
    return model, lnb.LNB(model, LR, **settings)


def _refused(optimizer: lnb.LNB, state: dict[str, Any]) -> str:
    """What is said of a state whose shards are of other ranks."""
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        return str(error)
    return "nothing"


def _averages(model: torch.nn.Module, optimizer: lnb.LNB) -> dict[str, torch.Tensor]:
    """Copies: gathered tensors of one rank are the state's own."""
    return {key: value.clone() for key, value in averages(model, optimizer).items()}


def _state(model: torch.nn.Module, optimizer: lnb.LNB) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
