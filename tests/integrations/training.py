"""The run that every trainer has to repeat: four steps of a small model, and its data."""

from __future__ import annotations

from typing import Any

import torch
from optimizer.small_models import batches, loss_of, mixed, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lnb


def data() -> TensorDataset:
    x, y = zip(*batches(4), strict=True)
    return TensorDataset(torch.cat(x), torch.cat(y))


def loader() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=16)


def expected(steps: int = 4, **settings: Any) -> nn.Module:
    """What a plain loop makes of the model."""
    model = mixed()
    train(model, lnb.LNB(model, **settings), batches(steps))
    return model


class Classifier(nn.Module):
    """The model as Transformers wants it: it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mixed()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": loss_of(self.net, (x, labels))}
