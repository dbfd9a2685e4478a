"""A double of Transformers' ``Conv1D``, and models of it and of ``nn.Linear`` that compute the same."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """The same parameters and results as Transformers' class."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.size()[:-1], self.nf)


@contextlib.contextmanager
def imported() -> Iterator[None]:
    """Within it Transformers is imported, as far as anyone can see, and this is its class."""
    module = types.ModuleType("transformers.pytorch_utils")
    module.Conv1D = Conv1D  # type: ignore[attr-defined]
    name = module.__name__
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:  # of this name alone: what was imported meanwhile stays
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def twin(linear: nn.Linear) -> Conv1D:
    made = Conv1D(linear.out_features, linear.in_features)
    with torch.no_grad():
        made.weight.copy_(linear.weight.t())
        made.bias.copy_(linear.bias)
    return made


class Net(nn.Module):
    """The feed-forward half of a GPT-2 block, with a head."""

    def __init__(self, transposed: bool) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.fc, self.proj, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 3, bias=False)
        if transposed:
            self.fc, self.proj = twin(self.fc), twin(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.proj(torch.tanh(self.fc(self.norm(x)))))
