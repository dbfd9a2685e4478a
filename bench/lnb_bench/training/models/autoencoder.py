"""The deep autoencoder that second-order methods are tried on."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from lnb_bench.training.models.mlp import ACTIVATIONS

HIDDEN = (1000, 500, 250)


class Autoencoder(nn.Module):
    """784-1000-500-250-``width``-250-500-1000-784, as in Hinton and Salakhutdinov (2006) and Martens (2010).

    The code is linear, and the outputs are logits of the pixels. Weights are Glorot-normal and biases zero; the units are
    tanh by default, as in the experiments of K-FAC (arXiv:1503.05671).

    Args:
        pixels: of an image.
        width: units of the code.
        activation: ``"tanh"`` or ``"relu"``.
        hidden: units of the encoder's layers; the decoder has them in reverse.
    """

    def __init__(
        self, pixels: int, width: int = 30, activation: str = "tanh", hidden: tuple[int, ...] = HIDDEN
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")
        sizes = [pixels, *hidden, width, *hidden[::-1], pixels]
        layers: list[nn.Module] = [nn.Flatten()]
        for place, (d_in, d_out) in enumerate(pairwise(sizes), 1):
            layers.append(nn.Linear(d_in, d_out))
            if place not in (len(hidden) + 1, len(sizes) - 1):
                layers.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, pixels]`` of images ``[n, ...]``."""
        logits: Tensor = self.layers(x)
        return logits
