"""``lnb plan``: what the optimizer would do for a model of the user's, and what that would cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import typer
from torch import Tensor, nn

from lnb.cli.errors import CommandError
from lnb.cli.settings import parse_settings, with_dtypes
from lnb.cli.user_code import call, explained, load
from lnb.optimizer import LNB


def run_plan(model: str, preset: str, inputs: list[str], assignments: list[str]) -> None:
    """Print coverage and plan of ``lnb.LNB`` for a model.

    Args:
        model: ``module:function``, a function or class that makes the model; or a module that is there already.
        preset: of ``lnb.LNB``.
        inputs: what the model is called with, each the shape of a positional argument, such as ``8,3,32,32`` or
            ``8,128:int64``; or one ``module:function`` that returns an argument, a tuple of them, or a dict of named ones.
            Empty: no step is made, and no times are predicted.
        assignments: settings of ``lnb.LNB``, each ``NAME=VALUE``.

    Raises:
        ValueError: an argument is not allowed, or the optimizer refuses the model, preset or a setting.
        TypeError: a setting has the wrong type, or does not exist.
        CommandError: the user's code raises an exception.
    """
    settings = with_dtypes(parse_settings(assignments) or {})
    network = _network(model)
    positional, named = _arguments(inputs, network)
    shown = " ".join([f"MODEL {model!r} with", *(f"--input {text}" for text in inputs)])
    if inputs and any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
        with explained(f"{shown}: its forward pass", _REMEDY), torch.no_grad():
            network(*positional, **named)
    optimizer = LNB(network, preset=preset, **settings)
    if inputs:
        with explained(f"{shown}: its forward pass", _REMEDY):
            outputs = network(*positional, **named)
            losses = [tensor.float().square().mean() for tensor in _tensors(outputs) if tensor.requires_grad]
        if not losses:
            raise CommandError(
                f"{shown} returned {type(outputs).__name__} without a floating-point tensor that depends on a parameter; give a "
                f"model whose parameters are not all frozen, or leave --input out"
            )
        with explained(f"{shown}: its backward pass"):
            torch.stack([loss.to(losses[0].device) for loss in losses]).sum().backward()
        with warnings.catch_warnings(record=True) as caught, explained(f"{shown}: the optimizer's step"):
            optimizer.step()
        for warning in caught:
            typer.echo(f"warning: {warning.message}", err=True)
    typer.echo(f"{optimizer.coverage()}\n\n{optimizer.plan()}")
    if not inputs:
        typer.echo(
            "to have them predicted here, give --input, such as --input 8,3,32,32: what the model is called with"
        )


_REMEDY = "give as --input what its forward takes"


def _network(text: str) -> nn.Module:
    found = load("MODEL", text)
    network = found if isinstance(found, nn.Module) else call("MODEL", text, found)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"MODEL {text!r} returned an object of type {type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def _arguments(inputs: list[str], network: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments that ``inputs`` describe."""
    if not any(text.partition(":")[0].replace(".", "").isidentifier() for text in inputs):
        return tuple(_example(text, network) for text in inputs), {}
    if len(inputs) > 1:
        raise ValueError(f"--input {', '.join(inputs)}: give shapes, or one function that returns all arguments")
    made = call("--input", inputs[0], load("--input", inputs[0]))
    if isinstance(made, Mapping):
        return (), dict(made)
    return tuple(made) if isinstance(made, (tuple, list)) else (made,), {}


def _example(text: str, network: nn.Module) -> Tensor:
    """A tensor of the shape and dtype that ``text`` describes: normal random numbers, or zeros where it is of integers."""
    sizes, _, name = text.partition(":")
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise ValueError(
            f"--input {text!r} must be sizes of at least 1 with commas between them, such as 8,3,32,32 or 8,128:int64, "
            f"or MODULE:FUNCTION"
        )
    first = next(network.parameters(), torch.empty(()))
    dtype = getattr(torch, name, None) if name else first.dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--input {text!r}: {name!r} must be a dtype of torch, such as int64 or bfloat16")
    with explained(f"--input {text!r}"):
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape, dtype=dtype, device=first.device)
        return torch.zeros(shape, dtype=dtype, device=first.device)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returned."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, (tuple, list)):
        for output in outputs:
            yield from _tensors(output)
