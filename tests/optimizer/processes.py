"""Processes that train together, forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp

IMPORTED_ONCE = [
    "lnb",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.parallel",
]


def run_ranks(run: Callable[[int, int, Path], None], ranks: int, folder: Path) -> None:
    """Call ``run(rank, ranks, folder)`` in as many processes; an exception of one of them is raised here."""
    multiprocessing.set_forkserver_preload(IMPORTED_ONCE)
    mp.start_processes(run, args=(ranks, folder), nprocs=ranks, start_method="forkserver")
