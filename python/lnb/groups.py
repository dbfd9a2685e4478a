"""Parameter groups as PyTorch's ecosystem writes them: which keys mean something here, and how to make groups of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from lnb.config import CARRIED, Config, check_number

# Switches of torch's own optimizers that LNB cannot follow. (`foreach` and `fused` it follows always: parameters of a
# group move in one call, of a native kernel where there is one.)
_REFUSED = {
    "maximize": "LNB minimises: negate the loss instead",
    "differentiable": "no gradient flows through a step of LNB: use torch.optim.SGD for meta-learning",
    "capturable": "the schedule of refreshes lives on the host: lnb.graphed_step captures whole training steps",
}
_SETTINGS = frozenset(field.name for field in dataclasses.fields(Config)) - {*CARRIED}


def check_keys(group: dict[str, Any], config: Config) -> None:
    """Check the keys of a parameter group that are not LNB's own; any that mean nothing to it are left alone.

    Args:
        group: the group, of LNB or written for another optimizer.
        config: the settings of the whole optimizer.

    Raises:
        ValueError: a group asks for what LNB cannot do (``maximize``, ``differentiable``, ``capturable``), or for another
            value of a setting that holds for the whole optimizer.
    """
    check_switches(group)
    for name in _SETTINGS & group.keys():
        value, own = group[name], getattr(config, name)
        if type(value) is not type(own) or value != own:
            raise ValueError(
                f"param group: {name}={value!r} cannot be set per group, it is {own!r} for all of them: pass it to LNB(...) "
                f"itself; what a group can have of its own is {', '.join(CARRIED)}"
            )


def check_switches(group: dict[str, Any]) -> None:
    """Refuse the switches of torch's optimizers that are on in ``group`` and that LNB cannot follow.

    Raises:
        ValueError: one is; the message says why, and what to do.
    """
    for name, reason in _REFUSED.items():
        if group.get(name):
            raise ValueError(f"param group: {name}={group[name]!r} must be False or None: {reason}")


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    no_decay: Iterable[str] = (),
    decay_embeddings: bool = True,
    lr: float | None = None,
    layer_decay: float | None = None,
    layers: Sequence[nn.Module] | None = None,
) -> list[dict[str, Any]]:
    """Groups of a model's parameters with and without weight decay, and with rates that fall from layer to layer.

    Without decay are parameters of at most one dimension (biases, gains of norms) and all others of norms. Pass the
    result as ``params``: ``lnb.LNB(model, params=lnb.param_groups(model, weight_decay=1e-4))``.

    Args:
        model: what is trained.
        weight_decay: of the groups that have any, >= 0.
        no_decay: names of more parameters without decay, whole or from a dot on: ``"pos_embed"`` means
            ``"encoder.pos_embed"`` too.
        decay_embeddings: whether the weights of ``nn.Embedding`` and ``nn.EmbeddingBag`` decay.
        lr: the rate of the layers next to the output; needed with ``layer_decay``.
        layer_decay: what the rate is multiplied by from each layer to the one before it, in (0, 1] (layer-wise decay of
            Clark et al., "ELECTRA", 2020). The product becomes the group's ``lr``, so that every scheduler keeps it.
        layers: the layers, from input to output; None for the children of the ``nn.ModuleList`` or ``nn.Sequential`` with the
            most parameters. Parameters registered before the first one count as one layer more, those after it as the
            output.

    Returns:
        Groups with ``params``, ``weight_decay``, ``name`` and, with ``layer_decay``, ``lr``; none is empty.

    Raises:
        TypeError: a value is of the wrong type.
        ValueError: a value is not allowed, a name fits no parameter, or there is nothing to count as layers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={type(model).__name__} must be a torch.nn.Module")
    check_number("weight_decay", weight_decay, low=0.0)
    if isinstance(no_decay, str):
        raise TypeError(f"no_decay={no_decay!r} must be a list of names, not a single one")
    scale_of = _depth_scales(model, lr, layer_decay, layers)
    kept = _without_decay(model, list(no_decay), decay_embeddings)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        scale, decays = scale_of(parameter), parameter not in kept
        if (scale, decays) not in groups:
            label = "decay" if decays else "no_decay"
            group: dict[str, Any] = {"params": [], "weight_decay": weight_decay if decays else 0.0, "name": label}
            if lr is not None:
                group |= {"lr": lr * scale, "name": label if layer_decay is None else f"{label}, lr x {scale:.4g}"}
            groups[scale, decays] = group
        groups[scale, decays]["params"].append(parameter)
    return list(groups.values())


def _without_decay(model: nn.Module, names: list[str], decay_embeddings: bool) -> set[nn.Parameter]:
    """The parameters that keep their size."""
    by_name = dict(model.named_parameters())
    kept = {parameter for parameter in by_name.values() if parameter.ndim <= 1}
    for module in model.modules():
        embeds = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        if "Norm" in type(module).__name__ or (embeds and not decay_embeddings):
            kept.update(module.parameters(recurse=False))
    for wanted in names:
        found = [parameter for name, parameter in by_name.items() if f".{name}".endswith(f".{wanted}")]
        if not found:
            raise ValueError(f"no_decay: {wanted!r} is the name of no parameter of model={type(model).__name__}")
        kept.update(found)
    return kept


def _depth_scales(
    model: nn.Module, lr: float | None, layer_decay: float | None, layers: Sequence[nn.Module] | None
) -> Callable[[nn.Parameter], float]:
    """What the rate of each parameter is multiplied by."""
    if lr is not None:
        check_number("lr", lr, low=0.0)
    if layer_decay is None:
        if layers is not None:
            raise ValueError("layers=... are counted for layer_decay only: pass it too, with lr")
        return lambda parameter: 1.0
    check_number("layer_decay", layer_decay, low=0.0, low_allowed=False, high=1.0 + 1e-12)
    if lr is None:
        raise ValueError(
            f"layer_decay={layer_decay!r} needs lr, the rate next to the output, to make every group's rate of"
        )
    chosen = _trunk(model) if layers is None else list(layers)
    depth = {parameter: i + 1 for i, layer in enumerate(chosen) for parameter in layer.parameters()}
    if not depth:
        raise ValueError(
            f"layer_decay={layer_decay!r}: model={type(model).__name__} has no nn.ModuleList or nn.Sequential of layers with "
            f"parameters: pass layers=[...], from input to output"
        )
    last, current = len(chosen) + 1, 0
    for parameter in model.parameters():
        if parameter in depth:
            current = last
        else:
            depth[parameter] = current
    return lambda parameter: layer_decay ** (last - depth[parameter])


def _trunk(model: nn.Module) -> list[nn.Module]:
    """The children of the container with the most parameters; of nested ones, of the outermost with several."""
    containers = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    sizes = [sum(parameter.numel() for parameter in container.parameters()) for container in containers]
    return list(containers[sizes.index(max(sizes))]) if containers else []
