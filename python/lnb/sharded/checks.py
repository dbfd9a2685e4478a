"""What shards of a model must be like, and the errors for others: raised on every rank, before a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from lnb.config import Config
from lnb.distributed.ranks import require_joint
from lnb.layers.claimed import Layer
from lnb.sharded.mesh import Ranks, row_placements, sharded_dims

_UNCHANGED = "Nothing was changed"


def require_rows(layer: Layer, ranks: Ranks) -> None:
    """Require that the parameters of a layer are cut by rows, or by tensor parallelism into equal columns, and alike.

    Raises:
        TypeError: they are not; the message names the layer, how they are cut, and the remedy.
    """
    name, weight = layer.name, layer.weight
    if isinstance(weight, DTensor):
        columns = [dim for dim in sharded_dims(weight) if weight.placements[dim].is_shard(1)]
        for dim in sharded_dims(weight):
            placement: Any = weight.placements[dim]
            even = weight.ndim == 2 and weight.shape[1] % weight.device_mesh.size(dim) == 0
            by_tensor = layer.takes_shards and not ranks.shares_samples(weight, dim)
            if placement.is_shard(1) and by_tensor and len(columns) == 1 and even:
                continue
            if placement.is_partial() or placement.dim != 0:
                raise TypeError(
                    f"params: the weight of layer {name!r}, {tuple(weight.shape)}, is placed as {weight.placements}; LNB solves "
                    f"rows, which are dimension 0, or equal shares of a linear layer's inputs under RowwiseParallel. Shard it by "
                    f"rows (fully_shard without a shard_placement_fn for it, ColwiseParallel), or pass exclude=[that layer]. "
                    f"{_UNCHANGED}"
                )
    if layer.bias is not None and _placed(weight) != _placed(layer.bias) and not _is_whole(layer.bias, weight):
        raise TypeError(
            f"params: the weight of layer {name!r} is {_described(weight)} and its bias is {_described(layer.bias)}; shard both "
            f"alike, on one mesh, or pass exclude=[that layer]. {_UNCHANGED}"
        )


def require_known_parallel(layer: Layer, ranks: Ranks) -> None:
    """Require that a layer whose forward pass sees shards is of a kind that can compute with them.

    Raises:
        TypeError: it is not.
    """
    if isinstance(layer.weight, DTensor) and ranks.is_tensor_parallel(layer.weight) and not layer.takes_shards:
        raise TypeError(
            f"params: layer {layer.name!r} is a {layer.kind} with a weight that tensor parallelism placed as "
            f"{layer.weight.placements}; only nn.Linear layers can be, by ColwiseParallel. Use fully_shard for it, or pass "
            f"exclude=[that layer]. {_UNCHANGED}"
        )


def require_no_sums(parameters: Iterable[nn.Parameter], names: dict[nn.Parameter, str]) -> None:
    """Require that no parameter is a sum over ranks.

    Raises:
        TypeError: one is.
    """
    for parameter in parameters:
        if isinstance(parameter, DTensor) and any(placement.is_partial() for placement in parameter.placements):
            raise TypeError(
                f"params: parameter {names.get(parameter, '(added)')!r} is placed as {parameter.placements}, a sum over "
                f"ranks; it must be sharded or replicated. {_UNCHANGED}"
            )


def require_own_ranks(entry: dict[str, Any], parameter: nn.Parameter, name: str) -> None:
    """Require that the shards in a saved state are those of the ranks that have the parameter's.

    Raises:
        ValueError: they are of others.
    """
    for key, value in entry.items():
        if isinstance(value, DTensor) and isinstance(parameter, DTensor):
            saved, own = (tensor.device_mesh.mesh.tolist() for tensor in (value, parameter))
            if saved != own:
                raise ValueError(
                    f"state_dict: {key!r} of parameter {name!r} is in shards on the ranks {saved}, and the parameter on {own}; "
                    f"save and load it by torch.distributed.checkpoint, or gather it first: "
                    f"get_optimizer_state_dict(..., options=StateDictOptions(full_state_dict=True)). {_UNCHANGED}"
                )


def require_settings(config: Config, ranks: int) -> None:
    """Require settings with which rows of a layer can be solved apart.

    Raises:
        ValueError: they cannot; the message names the setting and what works.
    """
    require_joint(config, ranks)
    if not config.region.by_rows:
        raise ValueError(
            f"trust_region={config.trust_region!r} works on all rows of a layer together, and they are sharded over {ranks} "
            f"ranks: choose 'two_sided', 'neuron', 'layer' or 'global'"
        )
    if not config.method.by_rows(config):
        raise ValueError(
            f"solver={config.solver!r} works on all rows of a layer together, and they are sharded over {ranks} ranks: choose "
            f"solver='cholesky'"
        )
    if config.split_refresh:
        raise ValueError(
            f"split_refresh=True shares out the layers over ranks that have whole copies of them, and they are sharded over "
            f"{ranks} ranks: leave it out"
        )
    if config.damping == "gain":
        raise ValueError(
            f"damping='gain' is not added up over the rows of a layer, and they are sharded over {ranks} ranks: choose "
            f"'agreement' or 'none'"
        )


def _is_whole(bias: nn.Parameter, weight: nn.Parameter) -> bool:
    """Whether a bias is placed as the rows of a weight that is cut by columns."""
    if not isinstance(weight, DTensor) or not isinstance(bias, DTensor) or bias.device_mesh != weight.device_mesh:
        return False
    return bias.placements == tuple(row_placements(weight))


def require_columns(layer: Layer, config: Config) -> None:
    """Require settings with which columns of a layer can be solved apart.

    Raises:
        ValueError: they cannot.
    """
    if layer.columns is not None and not (config.factored and config.region.two_sided):
        raise ValueError(
            f"trust_region={config.trust_region!r}, solver={config.solver!r}: the inputs of layer {layer.name!r} are shared out "
            f"(RowwiseParallel), with which trust_region='two_sided' and solver='cholesky' work: choose these, or pass "
            f"exclude=[that layer]"
        )


def _placed(parameter: nn.Parameter) -> object:
    return (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None


def _described(parameter: nn.Parameter) -> str:
    if not isinstance(parameter, DTensor):
        return "not sharded"
    return f"placed as {parameter.placements} on {parameter.device_mesh}"
