"""Layers for the tests of the fused step: arguments of its two ops, in any dtype, and the same in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lnb_kernels.fused_step import direct_layers_, finish_layers_, partial_count
from lnb_kernels.step_tables import RadiusRule, StepSettings

DECAY, TAKE = 0.95, 0.05
RADIUS = RadiusRule(
    opposed=0.25, shrink=0.9, grow=1.02, least=1e-4, b_coherence=0.9, quiet=0.8, loud=1.2, calm=0.95, floor=0.2,
    recover=1.01, opening=3, turning=1.5, telling=0.02, interval=5,
)  # fmt: skip
SETTINGS = StepSettings(
    momentum=DECAY, nesterov=True, b_rows=0.99, change=0.1, largest=0.25, radius=RADIUS, b_others=0.99, epsilon=1e-8,
    others_scale=0.01, most=1e18,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Of a layer: ``groups`` matrices ``[m, d]``, cut into blocks of ``side`` rows and ``size`` columns."""

    m: int
    d: int
    side: int
    size: int
    groups: int = 1
    bias: bool = True

    @property
    def rows(self) -> int:
        return self.groups * self.m


def positive(count: int, n: int) -> Tensor:
    """Well-conditioned positive matrices."""
    x = torch.randn(count, n, 2 * n + 4)
    return x @ x.mT / (2 * n + 4) + 0.25 * torch.eye(n)


@dataclass
class Layers:
    """Arguments of both ops, for some layers. ``numbers`` are those of :func:`finish_layers_`, by name."""

    shapes: list[Shape]
    directions: list[Tensor]
    momentum: list[Tensor]
    partials: Tensor
    mixed_biases: Tensor
    gradients: list[Tensor]
    bias_gradients: list[Tensor | None]
    bias_momentum: list[Tensor | None]
    inverses: list[Tensor]
    means: list[Tensor | None]
    roots: list[Tensor]
    shares: Tensor
    bias_shares: Tensor | None
    bias_directions: list[Tensor | None] = field(default_factory=list)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    steps: Tensor = field(default_factory=lambda: torch.empty(0))
    input_size: Tensor = field(default_factory=lambda: torch.empty(0))
    norms: Tensor | None = None

    @classmethod
    def random(
        cls,
        shapes: list[Shape],
        scale: float = 1.0,
        gradient_dtype: torch.dtype = torch.float32,
        direction_dtype: torch.dtype = torch.float32,
    ) -> Layers:
        """Random ones; gradients and their averages are of size ``scale``."""
        rows, blocks = [s.rows for s in shapes], [s.d // s.size for s in shapes]
        count = len(shapes)

        def wide(*size: int) -> Tensor:
            return torch.rand(*size, dtype=torch.float64) + 0.1

        def of_bias(s: Shape, dtype: torch.dtype) -> Tensor | None:
            return (scale * torch.randn(s.rows)).to(dtype) if s.bias else None

        steps = torch.randint(1, 9, (count,)).float()
        shares = DECAY / (1 - DECAY ** steps.double())
        own = {name: wide(count) for name in ("independent", "growth", "radius", "scales", "products")}
        return cls(
            shapes,
            [torch.full((s.groups, s.m, s.d), 7.0, dtype=direction_dtype) for s in shapes],
            [scale * torch.randn(s.groups, s.m, s.d) for s in shapes],
            torch.full((partial_count(rows, blocks),), 7.0, dtype=torch.float64),
            torch.full((sum(rows),), 7.0, dtype=torch.float64),
            [(scale * torch.randn(s.groups, s.m, s.d)).to(gradient_dtype) for s in shapes],
            [of_bias(s, gradient_dtype) for s in shapes],
            [of_bias(s, torch.float32) for s in shapes],
            [positive(s.groups * s.d // s.size, s.size).view(s.groups, -1, s.size, s.size) for s in shapes],
            [torch.randn(s.groups, s.d) if s.bias else None for s in shapes],
            [positive(s.rows // s.side, s.side).view(s.groups, -1, s.side, s.side) for s in shapes],
            shares,
            shares.clone(),
            [torch.full((s.rows,), 7.0) if s.bias else None for s in shapes],
            {
                "row_scales": torch.full((sum(rows),), 7.0),
                "row_square": scale**2 * 60 * wide(sum(rows)),
                **{name: scale**2 * x if name == "independent" else x for name, x in own.items()},
                "sums": wide(count, 4),
                "weight_norm": wide(count),
                "shorter": wide(count),
                "coherence": wide(count),
            },
            steps,
            10 * wide(count) * (torch.rand(count) < 0.7),  # most outputs are larger than 1 with it; 0 is for not known
        )

    def copy(self, dtype: torch.dtype | None = None) -> Layers:
        """The same in memory of its own; float32 and narrower tensors as ``dtype``, if that is given."""

        def copied(value: Any) -> Any:
            if isinstance(value, list):
                return [copied(entry) for entry in value]
            if isinstance(value, dict):
                return {name: copied(entry) for name, entry in value.items()}
            return value.clone().to(dtype or value.dtype) if isinstance(value, Tensor) else value

        return Layers(**{name: copied(value) for name, value in vars(self).items()})

    def tensors(self) -> list[Tensor]:
        """All of them."""
        entries = [x for v in vars(self).values() for x in (v if isinstance(v, list) else [v])]
        return [x for x in (*entries, *self.numbers.values()) if isinstance(x, Tensor)]

    def direct(self, precision: str = "tf32", ok: Tensor | None = None) -> None:
        """The first op."""
        direct_layers_(
            self.directions, self.momentum, self.partials, self.mixed_biases, self.gradients, self.bias_gradients,
            self.bias_momentum, self.inverses, self.means, self.roots, self.shares, self.bias_shares, DECAY, TAKE, ok,
            precision,
        )  # fmt: skip

    def finish(self, rates: list[float | Tensor] | None = None, ok: Tensor | None = None) -> None:
        """The second op."""
        names = (
            "row_scales", "row_square", "independent", "growth", "radius", "coherence", "sums", "scales",
            "products", "weight_norm", "shorter",
        )  # fmt: skip
        finish_layers_(
            self.bias_momentum, self.bias_directions, *(self.numbers[name] for name in names), self.partials,
            self.mixed_biases, self.input_size, self.bias_gradients, [s.rows for s in self.shapes],
            [s.d // s.size for s in self.shapes], self.steps, list(range(len(self.shapes))), self.norms,
            [0.5 + s.m for s in self.shapes], rates or [0.1] * len(self.shapes), self.bias_shares, SETTINGS, ok,
        )  # fmt: skip

    def sums(self) -> list[Tensor]:
        """Of each layer its part of ``partials``, ``[columns, rows, 6]``."""
        sizes = [6 * s.rows * (s.d // s.size) for s in self.shapes]
        parts = self.partials.split(sizes)
        return [part.view(-1, s.rows, 6) for part, s in zip(parts, self.shapes, strict=True)]
