"""Parameters that a trainer has cut up or exchanged: what LNB says to them, instead of steps without a metric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_REMEDY = "use DistributedDataParallel, or another optimizer for this model"


def refuse_shards(parameters: Iterable[Tensor]) -> None:
    """Require whole parameters.

    Raises:
        TypeError: one is a shard; the message names what cut it, why that cannot work, and the remedy.
    """
    for parameter in parameters:
        reason = _shard(parameter)
        if reason is not None:
            raise TypeError(
                f"params: a parameter of shape {tuple(parameter.shape)} is {reason}; {_REMEDY}. Nothing was changed"
            )


def _shard(parameter: Tensor) -> str | None:
    """What made a shard of ``parameter``; None for a whole one."""
    if _is_dtensor(parameter):
        return (
            "a DTensor, as fully_shard (FSDP2) and tensor parallelism make them: LNB solves whole rows of whole layers, and "
            "does not add its sums over shards yet"
        )
    if getattr(parameter, "_fsdp_flattened", False):
        return "part of a FlatParameter of FullyShardedDataParallel (FSDP1), whose cuts go through the rows of layers"
    if hasattr(parameter, "ds_id"):
        return "partitioned by DeepSpeed ZeRO stage 3, whose cuts go through the rows of layers"
    return None


def _is_dtensor(parameter: Tensor) -> bool:
    if type(parameter) in (nn.Parameter, Tensor) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def require_current(model: nn.Module, names: dict[nn.Parameter, str], param_groups: Iterable[dict[str, Any]]) -> None:
    """Require that the optimizer still moves the parameters that the model has.

    Trainers that build the optimizer first may give the model other parameters afterwards (``fully_shard``), or the optimizer
    (DeepSpeed ZeRO stages 1 and 2 put flat partitions into its groups). Then gradients would never reach its layers.

    Args:
        model: what LNB was attached to.
        names: the parameters that it had then.
        param_groups: the optimizer's.

    Raises:
        TypeError: parameters are shards now.
        RuntimeError: none of the optimizer's parameters is one of the model's, as it is or was.
    """
    current = list(model.parameters())
    refuse_shards(current)
    given = {parameter for group in param_groups for parameter in group["params"]}
    if not given.isdisjoint(current):
        return
    changed = "the optimizer's groups" if given.isdisjoint(names) else "the model"
    raise RuntimeError(
        f"step(): {changed} got other parameters since LNB was built, as fully_shard gives to a model and DeepSpeed ZeRO to an "
        f"optimizer: none of the {len(given)} that it moves is the model's. Build LNB after everything that exchanges "
        f"parameters; where they are partitioned, {_REMEDY}. Nothing was changed"
    )
