"""Saving and restoring an :class:`lnb.LNB`: the checks, and the state that torch's own loading would round."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lnb.config import CARRIED, Config, check_group, current_name
from lnb.groups import check_switches
from lnb.layers.capture import statistics_dtype
from lnb.layers.claimed import Inventory
from lnb.state.checks import check_entries
from lnb.state.schema import is_rounded, saved_settings

if TYPE_CHECKING:
    from lnb.planning.planner import Planner

FORMAT = 1
_MOST_STEPS = 2**53  # beyond, float64 does not count on


def check_state(
    state_dict: Any,
    param_groups: list[dict[str, Any]],
    inventory: Inventory,
    config: Config,
    restored_planner: Callable[[Any], Planner],
) -> Planner:
    """Require that ``state_dict`` fits the optimizer, before anything of it is applied.

    Args:
        state_dict: whatever the user passed.
        param_groups: the optimizer's.
        inventory: its layers.
        config: its settings.
        restored_planner: makes a planner from what was saved of one.

    Returns:
        That planner.

    Raises:
        TypeError: it is not the state of an :class:`lnb.LNB`.
        ValueError: it belongs to another model or another kind of metric, or is not whole; the message names the first
            difference.
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError("state_dict must be what LNB.state_dict() returned: a dict with 'state' and 'param_groups'")
    version = state_dict.get("lnb_format")
    if type(version) is not int or version != FORMAT:
        raise ValueError(
            f"state_dict: lnb_format={version!r} must be {FORMAT}; it was saved by another optimizer or "
            f"another version of lnb"
        )
    step = state_dict.get("lnb_step")
    if type(step) is not int or not 0 <= step <= _MOST_STEPS:
        raise ValueError(
            f"state_dict: lnb_step={step!r} must be a whole number of at least 0 and at most {_MOST_STEPS}"
        )
    settings = saved_settings(config)
    saved_with = state_dict.get("lnb_settings")
    if isinstance(saved_with, dict):
        saved_with = {name: current_name(value) for name, value in saved_with.items()}
    if saved_with != settings:
        raise ValueError(
            f"state_dict was saved with {saved_with}, whose state means something else than that of "
            f"this optimizer with {settings}"
        )
    saved_groups = _checked_groups(state_dict["param_groups"], param_groups)
    state = state_dict["state"]
    if not isinstance(state, dict):
        raise TypeError(f"state_dict: state={state!r} must be a dict of every parameter's state, by its number")
    unknown = state.keys() - {index for group in saved_groups for index in group["params"]}
    if unknown:
        raise ValueError(f"state_dict: state of parameters {sorted(map(str, unknown))} that are in no parameter group")
    planner = restored_planner(state_dict.get("lnb_plan"))
    check_entries(
        _pairs(state_dict, param_groups),
        inventory.names,
        {layer.weight: layer for layer in inventory.layers},
        lambda layer: config if layer is None else planner.choice(layer).config,
    )
    return planner


def _checked_groups(saved_groups: Any, param_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups, if they fit the optimizer's."""
    if not isinstance(saved_groups, list):
        raise TypeError(f"state_dict: param_groups={saved_groups!r} must be a list of dicts")
    for i, group in enumerate(saved_groups):
        if not isinstance(group, dict):
            raise TypeError(f"state_dict: param_groups[{i}]={group!r} must be a dict")
        missing = {"params", *CARRIED} - group.keys()
        if missing:
            raise ValueError(f"state_dict: param_groups[{i}] lacks {sorted(missing)}; it has {sorted(map(str, group))}")
        params = group["params"]
        if not isinstance(params, list) or any(type(index) not in (int, str) for index in params):
            raise TypeError(f"state_dict: param_groups[{i}]['params']={params!r} must be a list of numbers or names")
        check_group(group)
        check_switches(group)
        lr = group["lr"]
        if isinstance(lr, Tensor) and (lr.is_meta or not 0 <= float(lr) < math.inf):  # loading may wait for a device
            raise ValueError(f"state_dict: param_groups[{i}]['lr']={lr!r} must be in [0, inf)")
    indices = [index for group in saved_groups for index in group["params"]]
    if len(set(indices)) < len(indices):
        raise ValueError(f"state_dict: param_groups name a parameter more than once: {indices}")
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (param_groups, saved_groups))
    if sizes != saved_sizes:
        raise ValueError(f"state_dict has parameter groups of sizes {saved_sizes}, the optimizer of sizes {sizes}")
    return saved_groups


def fits_groups(state_dict: Any, param_groups: list[dict[str, Any]]) -> bool:
    """Whether ``state_dict`` has a saved parameter for each of the optimizer's; :func:`check_state` says what else is wrong."""
    if not isinstance(state_dict, dict) or not isinstance(state_dict.get("state"), dict):
        return False
    saved = state_dict.get("param_groups")
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        return False
    given = [group.get("params") for group in saved]
    if not all(isinstance(params, list) and all(type(number) in (int, str) for number in params) for params in given):
        return False
    entries = state_dict["state"].values()
    sizes = [len(group["params"]) for group in param_groups]
    return sizes == [len(params) for params in given] and all(isinstance(entry, dict) for entry in entries)


def restored_state(state_dict: dict[str, Any], param_groups: list[dict[str, Any]]) -> defaultdict[Tensor, Any]:
    """The state per parameter, copied; unlike torch's own loading, nothing is rounded to the parameter's dtype."""
    state: defaultdict[Tensor, Any] = defaultdict(dict)
    for parameter, entry in _pairs(state_dict, param_groups):
        state[parameter] = {key: _fitted(key, value, parameter).clone() for key, value in entry.items()}
    return state


def restored_groups(state_dict: dict[str, Any], param_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups' settings, with the optimizer's own parameters (and their names); keys that were not saved stay."""
    restored = []
    for group, saved in zip(param_groups, state_dict["param_groups"], strict=True):
        kept = {name: group[name] for name in ("params", "param_names") if name in group}
        settings = {name: value for name, value in saved.items() if name != "params"}
        restored.append({**group, **copy.deepcopy(settings), **kept})
    return restored


def follow_parameters(states: Any) -> None:
    """Move state along with parameters that ``model.to(...)`` has moved to another device or precision."""
    for parameter, state in states.items():
        momentum = state.get("momentum")
        if momentum is None or (momentum.dtype == parameter.dtype and momentum.device == parameter.device):
            continue  # nearly always
        if momentum is _fitted("momentum", momentum, parameter):
            continue
        for key, value in state.items():
            state[key] = _fitted(key, value, parameter)


def _fitted(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` on the device of ``parameter``, in the precision in which its statistics are kept."""
    if value.device == parameter.device and value.dtype == statistics_dtype(parameter.dtype):
        return value
    key = key.partition("@")[0]  # of a part of a sharded parameter
    rounds = is_rounded(key) and value.dtype in (torch.float32, torch.float64)
    return value.to(parameter.device, statistics_dtype(parameter.dtype) if rounds else value.dtype)


def _pairs(state_dict: dict[str, Any], param_groups: list[dict[str, Any]]) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    """Every parameter with the state saved for it."""
    ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in param_groups for parameter in group["params"]]
    state = state_dict["state"]
    return [(parameter, state[index]) for index, parameter in zip(ids, parameters, strict=True) if index in state]
