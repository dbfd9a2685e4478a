"""Multilayer perceptron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class MLP(nn.Module):
    """Flatten, then ``depth`` hidden layers of ``width`` units, then a linear layer.

    Weights are Glorot-normal and biases zero, as in the author's public setting of arXiv:2502.01131.

    Args:
        inputs: number of input values per example.
        classes: number of outputs.
        width: units of a hidden layer.
        depth: number of hidden layers, >= 0.
        activation: ``"tanh"`` or ``"relu"``.
    """

    def __init__(self, inputs: int, classes: int, width: int = 800, depth: int = 1, activation: str = "tanh") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), ACTIVATIONS[activation]()]
            inputs = width
        layers.append(nn.Linear(inputs, classes))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def start_as_before(self, scale: Tensor, shift: Tensor) -> None:
        """Make the network of ``scale * x + shift`` what it was of ``x``; both of the shape of one example.

        Only the first linear layer changes: ``W x + b = (W / scale) (scale x + shift) + b - (W / scale) shift``.
        """
        first = next(layer for layer in self.layers if isinstance(layer, nn.Linear))
        first.weight.div_(scale.flatten())
        first.bias.sub_(first.weight @ shift.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of inputs ``[n, ...]``."""
        logits: Tensor = self.layers(x)
        return logits
