"""Layers for the refresh kernels, and what plain PyTorch makes of them in any dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from support import assert_close_to_reference, relative_errors
from torch import Tensor

from lnb.config import Config
from lnb.statistics.factored import Factor, factorize
from lnb.statistics.orthogonalize import QUINTIC, STEPS, inverse_root
from lnb.statistics.running import NOISE, bias_correction, mean_diagonals, ridge_of, sample_ridge_of
from lnb.trust_regions.two_sided import output_moment
from lnb_kernels.refresh import InputMetric, OutputMetric, refreshers

NOISE_LEVEL = NOISE * torch.finfo(torch.float32).eps
WRITTEN = ("second_moment", "steps", "inverse", "mean", "output_moment", "root", "input_size")


@dataclass(frozen=True)
class Shape:
    """Groups; blocks of inputs and their side; blocks of neurons and their side; and settings."""

    groups: int
    blocks: int
    side: int
    outputs: int
    output_side: int
    bias: bool = True
    decay: float = 0.9
    steps: int = 3
    relative: bool = True
    shared: bool = False  # one moment for all groups


SHAPES = (
    Shape(1, 2, 5, 2, 3),
    Shape(2, 1, 17, 1, 20, bias=False, steps=0),
    Shape(1, 8, 4, 1, 35, decay=0.0, relative=False),  # more blocks than one thread block sums
    Shape(3, 2, 1, 2, 1, shared=True),
)


def layer(shape: Shape, seed: int = 0) -> InputMetric:
    """A layer with random statistics; what is written is NaN at first."""
    make = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=make)

    d, rows, side = shape.blocks * shape.side, shape.outputs * shape.output_side, shape.output_side
    offset = 2 if shape.bias else 0
    x = (normal(1 if shape.shared else shape.groups, shape.blocks, 4 * shape.side + 9, shape.side) + offset).double()
    ones = torch.cat([x, torch.ones(*x.shape[:-1], 1, dtype=torch.float64)], -1)
    gathered = (ones.mT @ ones).float().expand(shape.groups, -1, -1, -1)
    kept = shape.decay > 0
    weight = normal(shape.groups, rows, d)
    nan = torch.nan
    moment = normal(shape.groups, shape.outputs, side, side)
    outputs = OutputMetric(
        weight,
        normal(shape.groups, rows) if shape.bias else None,
        moment @ moment.mT / side if kept else None,
        torch.full((shape.groups, shape.outputs, side, side), nan),
        torch.full((), nan, dtype=torch.float64),
    )
    return InputMetric(
        gathered,
        None,
        gathered / gathered[0, 0, -1, -1] * (1 - shape.decay**shape.steps) * 0.75 if kept else None,
        torch.tensor(float(shape.steps)) if kept else None,
        torch.full((shape.groups, shape.blocks, shape.side, shape.side), nan),
        torch.full((shape.groups, d), nan) if shape.bias else None,
        shape.decay,
        0.2,
        shape.relative,
        1.0 if shape.relative else 0.0,
        2.0 * shape.side if shape.relative else 0.0,
        2,
        0.05,
        (outputs,),
    )


def written(of: InputMetric) -> dict[str, Tensor]:
    """What a refresh writes of a layer."""
    (outputs,) = of.outputs
    found = (of.average, of.steps, of.inverse, of.mean, outputs.average, outputs.root, outputs.input_size)
    return {name: tensor for name, tensor in zip(WRITTEN, found, strict=True) if tensor is not None}


def copy(of: InputMetric) -> InputMetric:
    """The same layer with memory of its own for what is written."""
    new = {name: tensor.clone() for name, tensor in written(of).items()}
    outputs = replace(of.outputs[0], average=new.get("output_moment"), root=new["root"], input_size=new["input_size"])
    return replace(
        of,
        average=new.get("second_moment"),
        steps=new.get("steps"),
        inverse=new["inverse"],
        mean=new.get("mean"),
        outputs=(outputs,),
    )


def moved(of: InputMetric, device: str) -> InputMetric:
    """The same layer on another device."""

    def on_device(holder: Any) -> dict[str, Tensor]:
        found = {field.name: getattr(holder, field.name) for field in fields(holder)}
        return {name: value.to(device) for name, value in found.items() if isinstance(value, Tensor)}

    outputs = tuple(replace(own, **on_device(own)) for own in of.outputs)  # type: ignore[arg-type]
    return replace(of, **on_device(of), outputs=outputs)  # type: ignore[arg-type]


def run(layers: list[InputMetric], ok: Tensor | None = None) -> list[dict[str, Tensor]]:
    """What the kernels write."""
    own = [copy(of) for of in layers]
    kernels = refreshers(own[0].gathered)[0]
    assert kernels.refresh(own, ok, NOISE_LEVEL, QUINTIC, STEPS)
    return [written(of) for of in own]


def plain(of: InputMetric, dtype: torch.dtype) -> dict[str, Tensor]:
    """What plain PyTorch makes of a layer, by the functions that refreshes elsewhere are made of."""
    (outputs,) = of.outputs
    assert isinstance(outputs.weight, Tensor)
    groups, blocks, ones, _ = of.gathered.shape
    rows = of.gathered[0, 0, -1, -1].to(dtype)
    mean = of.gathered.to(dtype) / rows
    results: dict[str, Tensor] = {}
    steps = None
    if of.average is not None and of.steps is not None:
        steps = of.steps + 1
        kept = torch.lerp(of.average.to(dtype), mean, 1 - of.decay)
        results |= {"second_moment": kept, "steps": steps.to(dtype)}
        mean = kept / bias_correction(of.decay, steps).to(dtype)
    share: float | Tensor = of.ridge
    if of.relative:
        config = Config(b_s=of.decay, sample_ridge=of.sample_ridge, sample_every=of.sample_every)
        of_data = torch.tensor(of.data_inputs, dtype=dtype)
        share = share + sample_ridge_of(ones - 1, rows, of_data, steps, config).expand(groups * blocks)
    flat = mean.reshape(groups * blocks, ones, ones)
    bias = None if outputs.bias is None else outputs.bias.to(dtype).unsqueeze(-1)
    ridge = ridge_of(flat, share, of.relative, bias is not None, (blocks,) * groups)
    factor = factorize(flat.unsqueeze(1), ridge, bias is not None, inverse=True)
    matrix = factor.matrix.reshape(of.inverse.shape)
    factor_mean = None if factor.mean is None else factor.mean.reshape(groups, -1)
    moment = output_moment(outputs.weight.to(dtype), bias, Factor(matrix, factor_mean), outputs.root.shape[1])
    results["inverse"] = matrix
    if factor_mean is not None:
        results["mean"] = factor_mean
    if outputs.average is not None:
        moment = torch.lerp(outputs.average.to(dtype), moment, 1 - of.decay)
        results["output_moment"] = moment
    results["root"] = inverse_root(moment, ridge=of.output_ridge)
    results["input_size"] = mean_diagonals(flat, bias is not None, (blocks,) * groups).mean().sqrt()
    return results


def reversed_inputs(of: InputMetric) -> InputMetric:
    """The same layer with its inputs in the opposite order. Its output moment and root are the same but for rounding."""
    (outputs,) = of.outputs
    assert isinstance(outputs.weight, Tensor)
    order = [*reversed(range(of.gathered.shape[-1] - 1)), of.gathered.shape[-1] - 1]

    def reverse(blocks: Tensor) -> Tensor:
        return blocks.flip(1)[:, :, order][..., order]

    average = None if of.average is None else reverse(of.average)
    outputs = replace(outputs, weight=outputs.weight.flip(-1))
    return replace(of, gathered=reverse(of.gathered), average=average, outputs=(outputs,))


def reversed_neurons(of: InputMetric) -> InputMetric:
    """The same layer with its neurons in the opposite order: so are the blocks of its output moment and root, and their rows."""
    (outputs,) = of.outputs
    assert isinstance(outputs.weight, Tensor)
    assert isinstance(outputs.bias, Tensor | None)
    bias = None if outputs.bias is None else outputs.bias.flip(-1)
    average = None if outputs.average is None else outputs.average.flip(1, 2, 3)
    return replace(of, outputs=(replace(outputs, weight=outputs.weight.flip(1), bias=bias, average=average),))


def orders_of(of: InputMetric) -> list[InputMetric]:
    """The layer with its inputs and neurons as they are, and in the other orders of which :func:`assert_refreshed` knows."""
    return [turned for inputs in (of, reversed_inputs(of)) for turned in (inputs, reversed_neurons(inputs))]


def _of_outputs(results: Sequence[dict[str, Tensor]], name: str) -> list[Tensor]:
    """One of the outputs' results of :func:`orders_of` a layer, each in the order of the layer itself."""
    return [result[name].flip(1, 2, 3) if i % 2 else result[name] for i, result in enumerate(results)]


def assert_refreshed(results: Sequence[dict[str, Tensor]], of: InputMetric) -> None:
    """What kernels wrote of :func:`orders_of` a layer errs at most twice as much as plain PyTorch in float32.

    Of a few small matrices, errors are chance of the order of sums, and another processor's are others. Where the order of inputs
    and neurons makes no difference to the truth, what is compared is the largest error of all orders, on both sides.
    """
    truth, plainly = plain(of, torch.float64), [plain(turned, torch.float32) for turned in orders_of(of)]
    assert results[0].keys() == truth.keys()
    for name, right in truth.items():

        def worst(found: Sequence[dict[str, Tensor]], name: str = name, right: Tensor = right) -> Tensor:
            orders = _of_outputs(found, name) if name in ("output_moment", "root") else [found[0][name]]
            return max(orders, key=lambda tensor: relative_errors(tensor, right)[0])

        found = worst(results)
        found = found.float() if name == "input_size" else found  # kept wide, and made of float32
        try:
            assert_close_to_reference(found, right, worst(plainly))
        except AssertionError as error:
            raise AssertionError(f"{name} of {tuple(of.inverse.shape)}: {error}") from None
