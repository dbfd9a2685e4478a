"""Parameters that a trainer has cut up or exchanged: which of them LNB follows, and the errors for the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lnb.layers.attach import detach_layer
from lnb.layers.claimed import without_wrappers
from lnb.sharded.dtensors import is_dtensor, is_sharded

if TYPE_CHECKING:
    from lnb.layers.claimed import Layer
    from lnb.sharded.shards import Shards

_REMEDY = "use fully_shard (FSDP2) or DistributedDataParallel, or another optimizer for this model"


def refuse_flat(parameters: Iterable[Tensor]) -> None:
    """Require that no parameter is a part that is cut through the rows of layers.

    Raises:
        TypeError: one is; the message names what cut it, why that cannot work, and the remedy.
    """
    for parameter in parameters:
        reason = _flat(parameter)
        if reason is not None:
            raise TypeError(
                f"params: a parameter of shape {tuple(parameter.shape)} is {reason}; {_REMEDY}. Nothing was changed"
            )


def _flat(parameter: Tensor) -> str | None:
    """What has flattened and cut ``parameter``; None where nothing has."""
    if getattr(parameter, "_fsdp_flattened", False):
        return "part of a FlatParameter of FullyShardedDataParallel (FSDP1), whose cuts go through the rows of layers"
    if hasattr(parameter, "ds_id"):
        return "partitioned by DeepSpeed ZeRO stage 3, whose cuts go through the rows of layers"
    return None


def register_shards(model: nn.Module) -> None:
    """Have modules that ``fully_shard`` was applied to hold their shards, and not what a forward pass gathered."""
    if any("FSDP" in type(module).__name__ for module in model.modules()):
        from lnb.sharded.mesh import data_modules

        for module in data_modules(model):
            module.reshard()


def release(former: Iterable[Layer], kept: Iterable[Layer]) -> None:
    """Detach the layers that were claimed before their parameters were cut up, and cannot be any more."""
    modules = {id(module) for layer in kept for module in layer.modules}
    for layer in former:
        for module in layer.modules:
            if id(module) not in modules:
                detach_layer(module)


def shards_class(param_groups: Iterable[dict[str, Any]]) -> type[Shards] | None:
    """What keeps the shards of an optimizer's parameters; None for whole parameters."""
    if not is_sharded(parameter for group in param_groups for parameter in group["params"]):
        return None
    from lnb.sharded.shards import Shards  # imports torch's distributed packages

    return Shards


def adopt_shards(model: nn.Module, names: dict[nn.Parameter, str], param_groups: Iterable[dict[str, Any]]) -> bool:
    """Have the optimizer move the shards that took the place of its parameters since it was built; whether there are any.

    Trainers that build the optimizer first may give the model other parameters afterwards (``fully_shard``), or the optimizer
    (accelerate puts the shards into its groups itself; DeepSpeed ZeRO stages 1 and 2 put flat partitions there). Then gradients
    would never reach its layers.

    Args:
        model: what LNB was attached to.
        names: the parameters that it had then.
        param_groups: the optimizer's.

    Raises:
        TypeError: parameters are flat parts now.
        RuntimeError: none of the optimizer's parameters is one of the model's, as it is or was.
    """
    param_groups = list(param_groups)
    current = {without_wrappers(model, name): parameter for name, parameter in model.named_parameters()}
    refuse_flat(current.values())
    given = {parameter for group in param_groups for parameter in group["params"]}
    own = {p: without_wrappers(model, name) for p, name in names.items() if p in given}
    shards = {p: current[name] for p, name in own.items() if name in current and current[name] is not p}
    shards = {p: shard for p, shard in shards.items() if is_dtensor(shard) and shard.shape == p.shape}
    put_there = any(is_dtensor(parameter) and parameter not in names for parameter in given & set(current.values()))
    if shards:
        for group in param_groups:
            group["params"] = [shards.get(parameter, parameter) for parameter in group["params"]]
        for parameter, shard in shards.items():
            if parameter.grad is not None and shard.grad is None:
                shard.grad = torch.zeros_like(shard)  # asked for state, of the parameters that it had
        given = {parameter for group in param_groups for parameter in group["params"]}
    if not given.isdisjoint(current.values()):
        return bool(shards) or put_there
    changed = "the optimizer's groups" if given.isdisjoint(names) else "the model"
    raise RuntimeError(
        f"step(): {changed} got other parameters since LNB was built, as DeepSpeed ZeRO gives to an optimizer: none of the "
        f"{len(given)} that it moves is the model's. Build LNB after everything that exchanges parameters; where they are "
        f"partitioned, {_REMEDY}. Nothing was changed"
    )
