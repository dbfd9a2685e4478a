"""Small models, batches and comparisons that the tests of the optimizer's behaviour share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lnb

Batch = tuple[Tensor, Tensor]

# Every route of the statistics: second moments with CG, kept inputs, factors of each step's own second moment, factors
# of an average on a refresh schedule.
MODES: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper", "lr": 0.05},
    "matrix-free": {"preset": "paper", "lr": 0.05, "solver": "matrix_free"},
    "factored": {"preset": "paper", "lr": 0.05, "solver": "cholesky"},
    "fast": {"preset": "fast", "lr": 0.02},
    "gain": {"preset": "full_batch", "lr": 0.2, "ridge": 0.1},
}


def mixed() -> nn.Sequential:
    """Convolution, norm, linear layers with and without a bias: 16 features of 4x4 images with 2 channels."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64, 8, bias=False),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )


def batches(count: int, seed: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 2, 4, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterable[Batch]) -> None:
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def copied(value: Any) -> Any:
    """A copy of nested dicts, lists and tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [copied(entry) for entry in value]
    return value


def same(a: Any, b: Any) -> bool:
    """Whether two such copies agree bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Every parameter and every state tensor, copied. The step counter is not in it."""
    return copied([dict(model.named_parameters()), optimizer.state_dict()["state"]])


def equal_parameters(a: nn.Module, b: nn.Module) -> bool:
    return same(copied(dict(a.named_parameters())), copied(dict(b.named_parameters())))


def trained(mode: str, make: Callable[[], nn.Module] = mixed, steps: int = 3) -> tuple[nn.Module, lnb.LNB]:
    model = make()
    optimizer = lnb.LNB(model, **MODES[mode])
    train(model, optimizer, batches(steps))
    return model, optimizer
