"""Layers of a model and their names, without what wraps the model, whoever attached to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lnb.layers.attach import attach_layers, detach_layer, require_module
from lnb.layers.claimed import Layer, take_inventory
from lnb.layers.registry import kind_of


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``: names do not depend on "
    "these."""
    require_module("model", model)
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def is_transposed(model: nn.Module, parameter: str) -> bool:
    """Whether the weight of this name is ``[d_in, d_out]``."""
    kind = kind_of(model.get_submodule(parameter.rpartition(".")[0]))
    return kind is not None and kind.transposed


def require_rows(model: nn.Module, layer: str, parameter: str) -> None:
    """Require a weight ``[d_out, d_in]``.

    Raises:
        ValueError: it is transposed.
    """
    if is_transposed(model, parameter):
        raise ValueError(
            f"layer {layer!r} of model={type(model).__name__} has the weight {parameter!r} as [d_in, d_out], and a new one "
            f"would be [d_out, d_in]: leave the layer out, or put an nn.Linear of the transposed weight in its place"
        )


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers that LNB would claim, of an attached model or of any other, which is left as it was.

    Args:
        model: without its wrappers (:func:`unwrapped`).
    """
    attached = attach_layers(model)
    try:
        return take_inventory(model).layers
    finally:
        for module in attached:
            detach_layer(module)


@dataclass(frozen=True)
class Names:
    """What a layer and its parameters are called in a model."""

    layer: str
    parameter: str
    bias: str | None


def names_in(model: nn.Module, layers: Iterable[Layer]) -> list[Names]:
    """The names of layers of ``model``: the path of each, or of its weight for a packed in-projection."""
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    paths = {module: path for path, module in model.named_modules()}
    found = []
    for owner in layers:
        weight = parameters[id(owner.weight)]
        layer = paths[owner.modules[0]] if owner.weight_role == "weight" else weight
        bias = None if owner.bias is None else parameters[id(owner.bias)]
        found.append(Names(layer or owner.name, weight, bias))
    return found
