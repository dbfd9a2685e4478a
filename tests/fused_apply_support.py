"""Models for the tests of ``fused_step.apply_``, and what its step makes of them in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lnb_kernels.fused_step import AdamRule, Biases, Others, Weights, apply_

RULE = AdamRule(beta=0.9, take=0.1, b_others=0.99, epsilon=1e-3)
LR = [0.5, torch.tensor(0.25, dtype=torch.float64)]
DECAY = [torch.tensor(0.125), 0.0625]
# Rows shorter than a pack, of odd lengths, of whole packs, longer than a block's piece, and one row alone.
WEIGHTS = [(5, 1), (9, 7), (300, 3, 3, 3), (6, 768), (2, 8197), (1, 20_000), (0, 4), (4000, 2)]
BIASES = [5, 9, 6]
OTHERS = [(3,), (0,), (2, 4500), (8193,)]


@dataclass
class Model:
    """Arguments of ``apply_``."""

    weights: Weights
    biases: Biases
    others: Others
    scales: Tensor
    shorter: Tensor | None
    lr: Sequence[float | Tensor]
    weight_decay: Sequence[float | Tensor]
    rule: AdamRule = RULE
    ok: Tensor | None = None

    def step(self) -> None:
        apply_(**vars(self))

    def written(self) -> list[Tensor]:
        lists: list[Sequence[Any]] = [self.others.averages, self.others.squares, [self.others.finite]]
        for part in (self.weights, self.biases, self.others):
            lists += [part.params, part.masters or []]
        return [tensor for values in lists for tensor in values if tensor is not None]

    def copy(self, dtype: torch.dtype | None = None) -> Model:
        """The same values in other memory that is aligned alike, and in another dtype if one is given."""

        def copied(value: Any) -> Any:
            if isinstance(value, Tensor):
                floating = value.is_floating_point() and dtype is not None
                return placed(value.to(dtype) if floating else value, value.storage_offset())
            if isinstance(value, (list, tuple)):
                return [copied(entry) for entry in value]
            if isinstance(value, (Weights, Biases, Others)):
                return replace(value, **{name: copied(entry) for name, entry in vars(value).items()})
            return value

        return Model(**{name: copied(value) for name, value in vars(self).items()})


def placed(tensor: Tensor, offset: int) -> Tensor:
    """The same values ``offset`` elements behind an aligned address, with NaN around them."""
    fill = float("nan") if tensor.is_floating_point() else 0
    memory = torch.full((tensor.numel() + offset + 1,), fill, dtype=tensor.dtype)
    memory[offset : offset + tensor.numel()] = tensor.reshape(-1)
    return memory[offset : offset + tensor.numel()].view(tensor.shape)


def model(
    param: torch.dtype = torch.float32,
    y: torch.dtype = torch.float32,
    masters: bool = False,
    offset: int = 0,
    weights: Sequence[tuple[int, ...]] = tuple(WEIGHTS),
    biases: Sequence[int] = tuple(BIASES),
    others: Sequence[tuple[int, ...]] = tuple(OTHERS),
    direction: torch.dtype | None = None,
) -> Model:
    """A model with two parameter groups.

    Args:
        param: dtype of the parameters.
        y: dtype of gradients.
        masters: whether parameters have masters.
        offset: elements between addresses and aligned ones.
        weights, biases, others: shapes.
        direction: dtype of the weights' directions; None for that of the gradients.
    """
    layers = len(weights)

    def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return placed(torch.randn(shape).to(dtype), offset)

    def owned(params: list[Tensor]) -> list[Tensor | None] | None:
        return [placed(p.float() + 1e-3 * torch.randn_like(p.float()), offset) for p in params] if masters else None

    of_weights = [rand(*shape, dtype=param) for shape in weights]
    of_biases = [rand(n, dtype=param) for n in biases]
    of_others = [rand(*shape, dtype=param) for shape in others]
    half = direction or (torch.float32 if y == torch.float16 else y)
    count = len(others)
    return Model(
        Weights(
            of_weights,
            [rand(*shape, dtype=half) for shape in weights],
            [placed(torch.rand(shape[0]) + 0.5, offset) for shape in weights],
            list(range(layers)),
            [i % 2 for i in range(layers)],
            owned(of_weights),
        ),
        Biases(of_biases, [rand(n) for n in biases], [i % layers for i in range(len(biases))], None, owned(of_biases)),
        Others(
            of_others,
            [rand(*shape, dtype=y) for shape in others],
            [rand(*shape) for shape in others],
            [rand(*shape).square() for shape in others],
            torch.rand(count, dtype=torch.float64) + 0.5,
            torch.rand(count, dtype=torch.float64) * 0.5 + 0.5,
            [layers + i for i in range(count)],
            [1] * count,
            owned(of_others),
            torch.ones(count, dtype=torch.bool),
        ),
        torch.rand(layers + count, dtype=torch.float64) + 0.5,
        1 - 0.01 * torch.rand(layers + count, dtype=torch.float64),
        LR,
        DECAY,
    )


def stepped(given: Model) -> dict[str, list[Tensor]]:
    """The parameters (or masters), averages and squares after the step, in float64, from the formulas one by one."""
    wide = given.copy(torch.float64)
    lr, decay = ([float(value) for value in values] for values in (given.lr, given.weight_decay))
    thetas: list[Tensor] = []

    def rates(part: Any, i: int) -> tuple[Tensor, float, float]:
        group = 0 if part.groups is None else part.groups[i]
        place = part.places[i] if isinstance(part, Others) else part.layers[i]
        return (
            (part.params if part.masters is None else part.masters)[i],
            lr[group] * float(wide.scales[place]),
            lr[group] * decay[group],
        )

    for i, direction in enumerate(wide.weights.directions):
        theta, step, shrink = rates(wide.weights, i)
        factor = 1.0 if wide.shorter is None else float(wide.shorter[wide.weights.layers[i]])
        rows = wide.weights.row_scales[i].view(-1, *[1] * (theta.dim() - 1))
        thetas.append(factor * (1 - shrink) * theta - step * rows * direction)
    for i, direction in enumerate(wide.biases.directions):
        theta, step, shrink = rates(wide.biases, i)
        thetas.append((1 - shrink) * theta - step * direction)
    averages, squares = [], []
    rule = given.rule
    assert wide.others.shares is not None
    assert wide.others.corrections is not None
    for i, gradient in enumerate(wide.others.gradients):
        theta, step, shrink = rates(wide.others, i)
        average = rule.beta * wide.others.averages[i] + (1 - rule.beta) * gradient
        square = rule.b_others * wide.others.squares[i] + (1 - rule.b_others) * gradient**2
        ahead = wide.others.shares[i] * average + rule.take * gradient
        direction = ahead / ((square / wide.others.corrections[i]).sqrt() + rule.epsilon)
        thetas.append((1 - shrink) * theta - step * direction)
        averages.append(average)
        squares.append(square)
    return {"thetas": thetas, "averages": averages, "squares": squares}


def thetas_of(given: Model) -> list[Tensor]:
    """What the step is added to: masters, or parameters."""
    parts = (given.weights, given.biases, given.others)
    return [t for part in parts for t in (part.params if part.masters is None else part.masters) if t is not None]


def params_of(given: Model) -> list[Tensor]:
    return [*given.weights.params, *given.biases.params, *given.others.params]
