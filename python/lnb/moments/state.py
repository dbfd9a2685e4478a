"""The second moments of a state dict of LNB, without its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lnb.config import Config
from lnb.layers.claimed import Layer
from lnb.moments.naming import layers_of
from lnb.state.portable import with_progress
from lnb.state.schema import allowed_shapes, shape_in_state
from lnb.statistics.tracked import Tracked

_KEYS = ("second_moment", "second_moment_step")
_REMEDY = "pass the optimizer itself, or the model and the state dict that belong together"


def tracked_of(model: nn.Module, state_dict: Mapping[str, Any]) -> list[Tracked]:
    """The claimed layers of ``model`` with what ``state_dict`` has of them.

    Args:
        model: without wrappers; it need not be attached.
        state_dict: as ``LNB.state_dict()`` or torch's ``get_optimizer_state_dict`` returned it, nested.

    Raises:
        ValueError: it is no state of LNB, of another model, or does not say which parameter is which.
    """
    whole = with_progress(dict(state_dict))
    if "lnb_format" not in whole or not isinstance(whole.get("state"), Mapping):
        raise ValueError(
            f"state_dict with the keys {sorted(map(str, state_dict))} is not what LNB.state_dict() returned; {_REMEDY}"
        )
    by_name = _by_name(model, whole)
    parameters, layers = dict(model.named_parameters()), layers_of(model)
    owners = {layer.weight: layer for layer in layers}
    shapes = {name: shape_in_state(parameter, owners.get(parameter)) for name, parameter in parameters.items()}
    for name, entry in by_name.items():
        momentum = entry.get("momentum")
        if name not in shapes or (isinstance(momentum, Tensor) and momentum.shape != shapes[name]):
            raise ValueError(f"state_dict: parameter {name!r} is none of the model's, or has another shape; {_REMEDY}")
    plan = whole.get("lnb_plan")
    names = {parameter: name for name, parameter in parameters.items()}
    return [_tracked(layer, names[layer.weight], by_name, plan) for layer in layers]


def _by_name(model: nn.Module, whole: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every saved parameter's state by the parameter's name."""
    state = whole["state"]
    if all(isinstance(key, str) for key in state):
        return dict(state)
    groups = whole["param_groups"]
    order = [index for group in groups for index in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(names) != len(order):
        names = [name for name, _ in model.named_parameters()]
        if len(groups) > 1 or len(names) != len(order):
            raise ValueError(
                f"state_dict: {len(groups)} parameter groups of {len(order)} parameters do not say which of the "
                f"model's "
                f"{len(names)} is which; pass the optimizer itself, or what get_optimizer_state_dict of "
                f"torch.distributed.checkpoint.state_dict returned, which has names"
            )
    return {name: state[index] for index, name in zip(order, names, strict=True) if index in state}


def _tracked(layer: Layer, name: str, by_name: Mapping[str, Mapping[str, Any]], plan: Any) -> Tracked:
    entry = by_name.get(name, {})
    for key in _KEYS:
        value, wanted = entry.get(key), allowed_shapes(key, layer.weight, layer, Config())
        if value is not None and not (isinstance(value, Tensor) and tuple(value.shape) in wanted):
            found = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(
                f"state_dict: {key!r} of parameter {name!r} has shape {found}, which does not fit; {_REMEDY}"
            )
    try:
        decay, samples = _reading(layer.name, plan or {})
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"state_dict: lnb_plan={plan!r} is not what LNB.state_dict() writes: {error}") from error
    return Tracked(layer, decay, samples, entry)


def _reading(name: str, plan: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The decay of a layer's average, and the samples that a refresh reads; None for what the plan does not say."""
    own, asked = plan.get("layers", {}).get(name, {}), plan.get("asked", {})
    decay, every = (own.get(field, asked.get(field)) for field in ("b_s", "sample_every"))
    count, _ = plan.get("rows", {}).get(name, (None, None))
    samples = None if count is None or every is None else int(count) / int(every)
    return None if decay is None else float(decay), samples
