"""Making layers of a model report the second moment of their inputs, and undoing it.

An attached layer keeps its parameters, names, ``state_dict`` keys, results and ``isinstance`` relations: only its class
is replaced by a subclass whose ``forward`` calls :func:`lnb_kernels.linear` or :func:`lnb_kernels.conv2d` with a
*moment probe*. The probe's gradient is the second moment, so autograd does the bookkeeping under gradient accumulation,
checkpointing and repeated use.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import TypeVar

from torch import nn

from lnb.layers.probed import ProbedLayer, detached_class, original_class, probed_form
from lnb.layers.registry import kind_of
from lnb.layers.unclaimed import reason_for

M = TypeVar("M", bound=nn.Module)


def unsupported_reason(module: nn.Module) -> str | None:
    """Why a layer's inputs cannot be captured, or None if they can."""
    cls, kind = original_class(module), kind_of(module)
    if kind is None:
        return reason_for(cls)
    refusal = kind.refusal(cls)
    if refusal is not None:
        return refusal
    weights = [module._parameters.get(name) for name in kind.weights(module)]
    if any(weight is None for weight in weights):
        return "its weight is computed from other parameters (parametrization, weight norm or pruning)"
    if any(isinstance(weight, nn.parameter.UninitializedParameter) for weight in weights):
        return "its shape is not known yet: run one forward pass before attaching"
    if any(weight is not None and weight.is_complex() for weight in weights):
        return "its weight is complex"
    return None


def attach(model: M, exclude: Iterable[nn.Module] = ()) -> M:
    """Make the linear, convolution and attention layers of ``model`` able to report their inputs' second moments.

    These are ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.MultiheadAttention``, and subclasses that keep their
    ``forward``.

    Parameters, their names, ``state_dict`` keys, ``isinstance`` and results stay as they are. :class:`lnb.LNB` calls
    this itself. Attaching twice changes nothing.

    Args:
        model: any module, changed in place.
        exclude: modules to leave alone, with everything inside them.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` or an entry of ``exclude`` is no module.
    """
    attach_layers(model, exclude)
    return model


def attach_layers(model: nn.Module, exclude: Iterable[nn.Module] = ()) -> list[nn.Module]:
    """:func:`attach`; returns the layers that were not attached before."""
    require_module("model", model)
    exclude = list(exclude)
    for module in exclude:
        require_module("exclude", module)
    left_alone = {id(inner) for module in exclude for inner in module.modules()}
    attached = []
    for module in model.modules():
        kind = kind_of(module)
        if kind is not None and unsupported_reason(module) is not None:
            left_alone.update(map(id, kind.uncalled(module)))
    for module in model.modules():
        kind = kind_of(module)
        if kind is None or id(module) in left_alone or isinstance(module, ProbedLayer):
            continue
        if unsupported_reason(module) is None:
            object.__setattr__(module, "_lnb_captures", kind.captures(module))
            # torch.fx looks here, and calls layers of torch.nn in its graphs instead of looking inside of them
            object.__setattr__(module, "__module__", type(module).__module__)
            object.__setattr__(module, "__class__", probed_form(kind.probed, type(module)))
            attached.append(module)
    return attached


def require_module(name: str, value: object) -> None:
    """Require a ``torch.nn.Module``."""
    if not isinstance(value, nn.Module):
        hint = ": pass the model itself, not its parameters" if name == "model" else ""
        raise TypeError(f"{name}={reprlib.repr(value)} must be a torch.nn.Module, not {type(value).__name__}{hint}")


def detach(model: M) -> M:
    """Undo :func:`attach`: every layer of ``model`` gets its class back and forgets what it captured.

    Returns:
        ``model``.
    """
    require_module("model", model)
    for module in model.modules():
        detach_layer(module)
    return model


def detach_layer(module: nn.Module) -> None:
    """Undo what :func:`attach` did to one layer, if it did anything."""
    if isinstance(module, ProbedLayer):
        original = detached_class(module)
        object.__delattr__(module, "_lnb_captures")
        module.__dict__.pop("__module__", None)
        object.__setattr__(module, "__class__", original)
