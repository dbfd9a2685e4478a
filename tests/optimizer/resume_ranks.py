"""Checkpoints of 1, 2, 4 and 8 ranks, each resumed on each of these numbers: ``python tests/optimizer/resume_ranks.py``.

``test_shards.py`` has some of the pairs; all of them take minutes. Prints a table, and fails where one does not resume.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from optimizer.shard_training import CASES, LR, averages, load, save, sharded, trained

import lnb

NUMBERS = (1, 2, 4, 8)
NAMES = ("fast", "factored")


def _begin(rank: int, ranks: int, folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    meeting = f"file://{folder / f'{what}{ranks}'}"
    timeout = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=timeout)


def _saved(rank: int, ranks: int, folder: Path) -> None:
    """Train, save, and go on."""
    _begin(rank, ranks, folder, "saving")
    for name in NAMES:
        make, settings = CASES[name]
        model = sharded(make().double())
        optimizer = lnb.LNB(model, LR, **settings)
        trained(model, optimizer, rank, ranks, steps=(0, 4))
        save(folder / f"{name}{ranks}", model, optimizer)
        state = {key: value.clone() for key, value in averages(model, optimizer).items()}
        ended = trained(model, optimizer, rank, ranks, steps=(4, 8))
        if rank == 0:
            torch.save((state, ended), folder / f"{name}{ranks}.pt")
    dist.destroy_process_group()


def _resumed(rank: int, ranks: int, folder: Path) -> None:
    """Load what every number of ranks has saved, and go on."""
    _begin(rank, ranks, folder, "loading")
    for name in NAMES:
        make, settings = CASES[name]
        for number in NUMBERS:
            model = sharded(make().double())
            optimizer = lnb.LNB(model, LR, **settings)
            load(folder / f"{name}{number}", model, optimizer)
            found = {key: value.clone() for key, value in averages(model, optimizer).items()}
            ended = trained(model, optimizer, rank, ranks, steps=(4, 8))
            state, expected = torch.load(folder / f"{name}{number}.pt")
            assert all(torch.equal(found[key], state[key]) for key in state), (name, number, ranks)
            assert number != ranks or all(map(torch.equal, ended, expected)), (name, number, ranks)
            if rank == 0:
                print(f"| {name} | {number} | {ranks} | {_difference(ended, expected):.1e} |", flush=True)
    dist.destroy_process_group()


def _difference(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


if __name__ == "__main__":
    print("| settings | saved on | resumed on | difference after four more steps |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        for ranks in NUMBERS:
            mp.spawn(_saved, args=(ranks, Path(place)), nprocs=ranks)
        for ranks in NUMBERS:
            mp.spawn(_resumed, args=(ranks, Path(place)), nprocs=ranks)
