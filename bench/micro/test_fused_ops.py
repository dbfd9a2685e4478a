"""The two ops of the fused step beside the same layer by layer, for layers whose blocks are 128 wide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lnb_kernels.fused_step import direct_layers_, finish_layers_, partial_count
from lnb_kernels.step_tables import RadiusRule, StepSettings

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
LAYERS, BLOCK, DECAY = 8, 128, 0.95
RADIUS = RadiusRule(
    opposed=0.0, shrink=0.9, grow=1.0, least=1e-4, b_coherence=0.9, quiet=0.8, loud=1.2, calm=0.95, floor=0.2,
    recover=1.01, opening=3, turning=1.5, telling=0.02, interval=5,
)  # fmt: skip
SETTINGS = StepSettings(
    momentum=DECAY, nesterov=False, b_rows=0.5, change=1e9, largest=1e9, radius=RADIUS, b_others=0.99, epsilon=1e-8,
    others_scale=1.0, most=1e18,
)  # fmt: skip


@dataclass
class Case:
    """Both sides of a comparison."""

    ours: Callable[[], list[Tensor]]
    plain: Callable[[], list[Tensor]]
    rtol: float = 1e-4


def direct_layers(device: str, d: int, m: int) -> Case:
    """Averages and directions of some layers, ours and layer by layer."""

    def blocks(n: int) -> Tensor:
        return torch.stack(
            [torch.eye(BLOCK, device=device) + 0.1 * torch.ones(BLOCK, BLOCK, device=device)] * (n // BLOCK)
        )

    gradients, starts = ([torch.randn(m, d, device=device) for _ in range(LAYERS)] for _ in range(2))
    inverse, root = blocks(d), blocks(m) / 2  # of unit size
    wide = {"dtype": torch.float64, "device": device}
    partials = torch.empty(partial_count([m] * LAYERS, [d // BLOCK] * LAYERS), **wide)  # type: ignore[arg-type]
    mixed, shares = torch.empty(m * LAYERS, **wide), torch.full((LAYERS,), 1.0, **wide)  # type: ignore[arg-type]
    none = [None] * LAYERS

    def ours() -> list[Tensor]:
        momentum = [start.clone() for start in starts]
        directions = [torch.empty_like(start) for start in starts]
        direct_layers_(
            directions, momentum, partials, mixed, gradients, none, none, [inverse] * LAYERS, none, [root] * LAYERS, shares,
            None, DECAY, 0.0, precision="tf32x3",
        )  # fmt: skip
        return directions

    def plain() -> list[Tensor]:
        averages = [torch.lerp(start, gradient, 1 - DECAY) for start, gradient in zip(starts, gradients, strict=True)]
        mixed_rows = [(root @ average.view(-1, BLOCK, d)).view(m, d) for average in averages]
        cut = [rows.view(m, -1, BLOCK).transpose(0, 1) @ inverse for rows in mixed_rows]
        # The largest entry of the block of the root is 0.55: it is of unit size as it is.
        return [step.transpose(0, 1).reshape(m, d) for step in cut]

    return Case(ours, plain)


def finish_layers(device: str, d: int, m: int) -> Case:
    """The scales of rows from the sums of their tiles, where gradients agree half."""
    wide = {"dtype": torch.float64, "device": device}
    columns = d // BLOCK
    partials = torch.rand(LAYERS, columns, m, 6, **wide)  # type: ignore[arg-type]
    numbers = [torch.ones(LAYERS, **wide) for _ in range(8)]  # type: ignore[arg-type]
    sums, row_square = torch.empty(LAYERS, 4, **wide), torch.zeros(LAYERS * m, **wide)  # type: ignore[arg-type]
    steps, scales = torch.ones(LAYERS, device=device), torch.empty(LAYERS * m, device=device)
    none = [None] * LAYERS
    places = list(range(LAYERS))

    def ours() -> list[Tensor]:
        independent, growth, radius, coherence, of_layers, products, norms, shorter = numbers
        finish_layers_(
            none, none, scales, row_square.zero_(), independent, growth, radius, coherence, sums, of_layers,
            products, norms, shorter,
            partials.flatten(), row_square.new_zeros(LAYERS * m), row_square.new_zeros(LAYERS), none, [m] * LAYERS,
            [columns] * LAYERS, steps, places, None, [1.0] * LAYERS, [0.1] * LAYERS, None, SETTINGS,
        )  # fmt: skip
        return [scales]

    def plain() -> list[Tensor]:
        product, _, _, _, average, gradient = partials.sum(1).unbind(-1)
        return [(product.rsqrt() * (average / gradient).clamp(max=1).sqrt()).flatten().float()]

    return Case(ours, plain)


CASES = {"direct_layers_": direct_layers, "finish_layers_": finish_layers}


@pytest.mark.parametrize("who", ["plain", "reference", "native"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_time(compare: Callable[..., None], name: str, device: str, who: str) -> None:
    compare(name, who, device, lambda: CASES[name](device, 512, 256))
