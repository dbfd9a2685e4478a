"""Saving and restoring an :class:`lnb.LNB`: what must match, and what torch's own loading would round."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from lnb.blocks import Block, Inventory
from lnb.capture import statistics_dtype
from lnb.config import WITH_FACTOR, Config, check_group

FORMAT = 1
_COUNTS = ("step", "moment_step", "second_moment_step")


def saved_settings(config: Config) -> dict[str, Any]:
    """The settings that decide what a layer's state means."""
    region = config.trust_region if config.trust_region in WITH_FACTOR else "any other"
    return {"solver": config.solver, "trust_region": region}


def check_state(state_dict: Any, param_groups: list[dict[str, Any]], inventory: Inventory, config: Config) -> None:
    """Require that ``state_dict`` fits the optimizer, before anything of it is applied.

    Raises:
        TypeError: it is not the state of an :class:`lnb.LNB`.
        ValueError: it belongs to another model or another kind of metric; the message names the first difference.
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError("state_dict must be what LNB.state_dict() returned: a dict with 'state' and 'param_groups'")
    if state_dict.get("lnb_format") != FORMAT:
        raise ValueError(
            f"state_dict: lnb_format={state_dict.get('lnb_format')!r} must be {FORMAT}; it was saved by another optimizer or "
            f"another version of lnb"
        )
    if not isinstance(state_dict.get("lnb_step"), int) or state_dict["lnb_step"] < 0:
        raise ValueError(f"state_dict: lnb_step={state_dict.get('lnb_step')!r} must be a whole number of at least 0")
    settings = saved_settings(config)
    if state_dict.get("lnb_settings") != settings:
        raise ValueError(
            f"state_dict was saved with {state_dict.get('lnb_settings')}, whose state means something else than that of "
            f"this optimizer with {settings}"
        )
    saved_groups = state_dict["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (param_groups, saved_groups))
    if sizes != saved_sizes:
        raise ValueError(f"state_dict has parameter groups of sizes {saved_sizes}, the optimizer of sizes {sizes}")
    for group in saved_groups:
        check_group(group)
    unknown = state_dict["state"].keys() - {index for group in saved_groups for index in group["params"]}
    if unknown:
        raise ValueError(f"state_dict: state of parameters {sorted(unknown)} that are in no parameter group")
    by_weight = {block.weight: block for block in inventory.blocks}
    for parameter, entry in _pairs(state_dict, param_groups):
        block = by_weight.get(parameter)
        for key, value in entry.items():
            wanted = _shapes(key, parameter, block)
            if not isinstance(value, Tensor) or tuple(value.shape) not in wanted:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"value {value!r}"
                raise ValueError(
                    f"state_dict: {key!r} of parameter {inventory.names.get(parameter, '(not of the model)')!r} has {found}, "
                    f"this optimizer needs {' or '.join(map(str, wanted)) if wanted else 'none'}"
                )


def restored_state(state_dict: dict[str, Any], param_groups: list[dict[str, Any]]) -> defaultdict[Tensor, Any]:
    """The state per parameter, copied; unlike torch's own loading, nothing is rounded to the parameter's dtype."""
    state: defaultdict[Tensor, Any] = defaultdict(dict)
    for parameter, entry in _pairs(state_dict, param_groups):
        state[parameter] = {key: _fitted(key, value, parameter).clone() for key, value in entry.items()}
    return state


def restored_groups(state_dict: dict[str, Any], param_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups' settings, with the optimizer's own parameters (and their names)."""
    restored = []
    for group, saved in zip(param_groups, state_dict["param_groups"], strict=True):
        kept = {name: group[name] for name in ("params", "param_names") if name in group}
        settings = {name: value for name, value in saved.items() if name != "params"}
        restored.append({**copy.deepcopy(settings), **kept})
    return restored


def follow_parameters(states: Any) -> None:
    """Move the state of parameters that were moved to another device or precision, ``model.to(...)``, after them."""
    for parameter, state in states.items():
        momentum = state.get("momentum")
        if momentum is None or momentum is _fitted("momentum", momentum, parameter):
            continue
        for key, value in state.items():
            state[key] = _fitted(key, value, parameter)


def _fitted(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` on the device of ``parameter``, in the precision in which its statistics are kept."""
    if value.device == parameter.device and value.dtype == statistics_dtype(parameter.dtype):
        return value
    rounds = key not in _COUNTS and value.dtype in (torch.float32, torch.float64)
    return value.to(parameter.device, statistics_dtype(parameter.dtype) if rounds else value.dtype)


def _pairs(state_dict: dict[str, Any], param_groups: list[dict[str, Any]]) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    """Every parameter with the state saved for it."""
    ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in param_groups for parameter in group["params"]]
    state = state_dict["state"]
    return [(parameter, state[index]) for index, parameter in zip(ids, parameters, strict=True) if index in state]


def _shapes(key: str, parameter: nn.Parameter, block: Block | None) -> list[tuple[int, ...]]:
    """The shapes that state ``key`` of ``parameter`` may have."""
    if key in _COUNTS:
        return [()]
    if key in ("momentum", "gradient_square", "master"):
        return [tuple(parameter.shape)]
    if block is None:
        return []
    groups, rows, d_in = block.shape
    if key == "direction":
        return [(groups, rows, d_in), (groups, rows, d_in + 1)]
    if key in ("second_moment", "factor", "output_factor", "output_moment"):
        side = rows if key.startswith("output") else d_in
        ones = key == "second_moment"
        sizes = [(blocks, side // blocks + ones) for blocks in range(1, side + 1) if side % blocks == 0]
        return [(groups, blocks, size, size) for blocks, size in sizes]
    return [(groups, d_in)]
