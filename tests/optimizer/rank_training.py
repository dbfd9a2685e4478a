"""What each of the two processes of ``test_ranks.py`` does: a module that a spawned process can import."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lnb

RANKS = 2
CASES: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast"},
    "paper": {"preset": "paper"},
    "paper, averaged": {"preset": "paper", "refresh_every": 2, "b_s": 0.5, "cg_scope": "neuron"},
}


class Network(nn.Module):
    """A convolution, attention of two inputs, and a linear layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[n, 3]`` of images ``[n, 2, 6, 6]``."""
        tokens = self.patches(images).flatten(2).mT
        mixed, _ = self.attention(tokens, tokens.tanh(), tokens.tanh(), need_weights=False)
        scores: Tensor = self.head(mixed.mean(1))
        return scores


def trained(model: nn.Module, optimizer: lnb.LNB, rank: int = 0, ranks: int = 1) -> Tensor:
    """All parameters after five steps on this rank's share of every batch."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.rand(16, 2, 6, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (16,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::ranks]), y[rank::ranks]).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run_rank(rank: int, folder: Path) -> None:
    """Train every case both ways of telling the optimizer, and write the parameters to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS)
    found: dict[str, Tensor] = {}
    for name, settings in CASES.items():
        wrapped = DistributedDataParallel(Network().double())
        found[f"{name}, wrapped"] = trained(wrapped, lnb.LNB(wrapped, 0.02, **settings), rank, RANKS)
        model = Network().double()
        optimizer = lnb.LNB(model, 0.02, process_group=dist.group.WORLD, **settings)
        found[f"{name}, group"] = trained(DistributedDataParallel(model), optimizer, rank, RANKS)
    torch.save({"parameters": found, "complaints": _complaints()}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def _complaints() -> list[str]:
    """What is said to settings that cannot work on several ranks, and where ranks are not mentioned."""
    world = dist.group.WORLD
    found = [
        _refusal(solver="auto", process_group=world),
        _refusal(solver="matrix_free", process_group=world),
        _refusal(solver="cholesky", max_overhead=0.1, process_group=world),
        _refusal(process_group="gloo"),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lnb.LNB(Network())
    return found + [str(warning.message) for warning in caught]


def _refusal(**settings: Any) -> str:
    try:
        lnb.LNB(Network(), preset="paper", **settings)
    except (TypeError, ValueError) as error:
        return str(error)
    return "none"
