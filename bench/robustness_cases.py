"""The cases of the robustness suite: small regressions that stress one thing each, with what an optimizer meets there.

Every case is a regression of ``tanh(w'x)`` from normal inputs, ``w`` standard normal, unless it says otherwise. New rows are
drawn in every step, so that nothing can be memorised and the training loss is the expected loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUTS = 32
STEPS = 300

Rows = Callable[[torch.Generator, int], Tensor]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: what the table calls it.
        build: makes the model; draws from torch's global generator.
        rows: draws inputs ``[batch, INPUTS]``.
        batch: rows per backward pass.
        steps: of the optimizer.
        noise: standard deviation of what is added to the targets.
        scale: of the targets.
        accumulate: backward passes per step.
        schedule: ``"constant"``, ``"cosine"``, ``"one-cycle"`` or ``"warm-up"``.
        dtype: of parameters and inputs; autocast to bfloat16 where ``autocast`` is set.
        autocast: run the forward pass under bfloat16 autocast.
        quick: part of the slice that the tests run.
        muon: whether Muon takes part. Its products at width 4,096 are 2e12 operations a step.
    """

    name: str
    build: Callable[[], nn.Module]
    rows: Rows = lambda generator, n: torch.randn(n, INPUTS, generator=generator)
    batch: int = 128
    steps: int = STEPS
    noise: float = 0.0
    scale: float = 1.0
    accumulate: int = 1
    schedule: str = "constant"
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    quick: bool = False
    muon: bool = True

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets ``[batch, 1]``, without end."""
        generator = torch.Generator().manual_seed(1000 + seed)
        weights = torch.randn(INPUTS, generator=generator)
        while True:
            x = self.rows(generator, self.batch)
            unit = x / x.square().mean().sqrt().clamp(min=1e-30) if self.rows is not normal_rows else x
            y = torch.tanh(unit @ weights).unsqueeze(1) * self.scale
            if self.noise:
                y = y + self.noise * torch.randn(y.shape, generator=generator)
            yield x.to(self.dtype), y.to(self.dtype)


def normal_rows(generator: torch.Generator, n: int, scale: float = 1.0) -> Tensor:
    """Standard normal inputs, times ``scale``."""
    return scale * torch.randn(n, INPUTS, generator=generator)


def one_hot_rows(generator: torch.Generator, n: int) -> Tensor:
    """One input of 1, the others 0."""
    return F.one_hot(torch.randint(INPUTS, (n,), generator=generator), INPUTS).float()


def constant_inputs(generator: torch.Generator, n: int) -> Tensor:
    """Half of the inputs never vary."""
    x = normal_rows(generator, n)
    x[:, ::2] = 3.0
    return x


def outlier_rows(generator: torch.Generator, n: int) -> Tensor:
    """One row in a hundred is a hundred times as large."""
    x = normal_rows(generator, n)
    return torch.where(torch.rand(n, 1, generator=generator) < 0.01, 100 * x, x)


def offset_rows(generator: torch.Generator, n: int) -> Tensor:
    """Inputs of mean 10."""
    return normal_rows(generator, n) + 10


def rescaled_inputs(generator: torch.Generator, n: int) -> Tensor:
    """Standard deviations from 1e-3 to 1e3."""
    return normal_rows(generator, n) * torch.logspace(-3, 3, INPUTS)


def plain(depth: int, width: int, activation: type[nn.Module], norm: bool = False) -> nn.Module:
    """``depth`` hidden layers, without residual connections."""
    layers: list[nn.Module] = []
    d_in = INPUTS
    for _ in range(depth):
        layers += [nn.Linear(d_in, width), *([nn.LayerNorm(width)] if norm else []), activation()]
        d_in = width
    return nn.Sequential(*layers, nn.Linear(d_in, 1))


class Residual(nn.Module):
    """``x + f(x)``, ``blocks`` times; ``f`` has one hidden layer, with or without a LayerNorm before it."""

    def __init__(self, blocks: int, width: int = 64, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *([nn.LayerNorm(width)] if norm else []), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
            )
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


class Recurrent(nn.Module):
    """One linear layer used ``times`` times: ``h <- tanh(W h + x)``."""

    def __init__(self, times: int, width: int = INPUTS) -> None:
        super().__init__()
        self.cell, self.last, self.times = nn.Linear(width, width), nn.Linear(width, 1), times

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        for _ in range(self.times):
            h = torch.tanh(self.cell(h) + x)
        out: Tensor = self.last(h)
        return out


def dead_units() -> nn.Module:
    """Half of the hidden units of every layer never fire."""
    model = plain(3, 64, nn.ReLU)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear) and layer.out_features > 1:
                layer.bias[::2] = -1e3
    return model


def zero_last() -> nn.Module:
    """The last layer starts at zero."""
    model = plain(3, 64, nn.GELU)
    assert isinstance(model, nn.Sequential)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return model


def scaled_weights(factor: float) -> nn.Module:
    """Every weight ``factor`` times as large as PyTorch's."""
    model = plain(3, 64, nn.Tanh)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(factor)
    return model


_ACTIVATIONS: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "GELU": nn.GELU, "tanh": nn.Tanh}


def _cases() -> Iterator[Case]:
    base = Case("", partial(plain, 3, 64, nn.GELU), rows=normal_rows)
    make = partial(dataclasses.replace, base)
    for name, activation in _ACTIVATIONS.items():
        for depth in (2, 4, 8, 12, 20, 32):
            yield make(
                name=f"plain {depth} x 64 {name}",
                build=partial(plain, depth, 64, activation),
                quick=(depth, name) in ((20, "ReLU"), (12, "GELU"), (32, "tanh")),
            )
        for depth in (4, 16, 32):
            yield make(name=f"plain {depth} x 64 {name}, LayerNorm", build=partial(plain, depth, 64, activation, True))
    yield make(name="plain 12 x 128 GELU", build=partial(plain, 12, 128, nn.GELU))
    for blocks in (4, 16, 64):
        yield make(name=f"residual {blocks}", build=partial(Residual, blocks), quick=blocks == 16)
        yield make(name=f"residual {blocks}, no norm", build=partial(Residual, blocks, norm=False))
    for width in (16, 256, 1024):
        yield make(name=f"width {width}", build=partial(plain, 2, width, nn.ReLU))
    yield make(name="width 4096", build=partial(plain, 2, 4096, nn.ReLU), steps=100, muon=False)
    for batch in (1, 2, 8, 1024, 4096):
        yield make(name=f"batch {batch}", batch=batch, quick=batch == 1)
    yield make(name="dead units", build=dead_units)
    yield make(name="zero last layer", build=zero_last)
    for factor in (1e-2, 10.0):
        yield make(name=f"weights x {factor:g}", build=partial(scaled_weights, factor))
    for rows in (one_hot_rows, constant_inputs, outlier_rows, offset_rows, rescaled_inputs):
        yield make(name=rows.__name__.replace("_", " "), rows=rows, quick=rows is outlier_rows)
    for scale in (1e-6, 1e-3, 1e3, 1e6):
        yield make(name=f"inputs x {scale:g}", rows=partial(normal_rows, scale=scale), quick=scale == 1e6)
    for scale in (1e-3, 1e3):
        yield make(name=f"targets x {scale:g}", scale=scale)
    yield make(name="recurrent 100", build=partial(Recurrent, 100), quick=True)
    yield make(name="label noise 1", noise=1.0)
    yield make(name="label noise 1, batch 8", noise=1.0, batch=8)
    yield make(name="accumulation 8", accumulate=8, batch=16)
    yield make(name="bfloat16 autocast", autocast=True)
    yield make(name="bfloat16 parameters", dtype=torch.bfloat16)
    for schedule in ("cosine", "one-cycle", "warm-up"):
        yield make(name=f"{schedule} schedule", schedule=schedule)


CASES = {case.name: case for case in _cases()}
