"""Saving and restoring an :class:`lnb.LNB`: what must match, and what torch's own loading would round."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lnb.blocks import Block

FORMAT = 1


def check_state(
    state_dict: Any, param_groups: list[dict[str, Any]], blocks: list[Block], names: dict[nn.Parameter, str]
) -> None:
    """Require that ``state_dict`` fits the optimizer, before anything of it is applied.

    Raises:
        TypeError: it is not the state of an :class:`lnb.LNB`.
        ValueError: it belongs to another model; the message names the first parameter that differs.
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError("state_dict must be what LNB.state_dict() returned: a dict with 'state' and 'param_groups'")
    if state_dict.get("lnb_format") != FORMAT:
        raise ValueError(
            f"state_dict: lnb_format={state_dict.get('lnb_format')!r} must be {FORMAT}; it was saved by another optimizer or "
            f"another version of lnb"
        )
    saved_groups = state_dict["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (param_groups, saved_groups))
    if sizes != saved_sizes:
        raise ValueError(f"state_dict has parameter groups of sizes {saved_sizes}, the optimizer of sizes {sizes}")
    by_weight = {block.weight: block for block in blocks}
    for parameter, entry in _pairs(state_dict, param_groups):
        block = by_weight.get(parameter)
        for key, value in entry.items():
            wanted = _shapes(key, parameter, block)
            if isinstance(value, Tensor) and tuple(value.shape) not in wanted:
                raise ValueError(
                    f"state_dict: {key!r} of parameter {names.get(parameter, '(not of the model)')!r} has shape "
                    f"{tuple(value.shape)}, the model needs {' or '.join(map(str, wanted))}"
                )


def restore_exactly(state_dict: dict[str, Any], param_groups: list[dict[str, Any]], state: Any) -> None:
    """Give every loaded tensor the dtype it was saved in (torch rounds it to the parameter's)."""
    for parameter, entry in _pairs(state_dict, param_groups):
        for key, value in entry.items():
            if isinstance(value, Tensor):
                state[parameter][key] = value.to(parameter.device, copy=True)


def _pairs(state_dict: dict[str, Any], param_groups: list[dict[str, Any]]) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    """Every parameter with the state saved for it."""
    ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in param_groups for parameter in group["params"]]
    state = state_dict["state"]
    return [(parameter, state[index]) for index, parameter in zip(ids, parameters, strict=True) if index in state]


def _shapes(key: str, parameter: nn.Parameter, block: Block | None) -> list[tuple[int, ...]]:
    """The shapes that state ``key`` of ``parameter`` may have."""
    if key in ("step", "moment_step"):
        return [()]
    if key in ("momentum", "gradient_square"):
        return [tuple(parameter.shape)]
    if block is None:
        return []
    groups, rows, d_in = block.shape
    if key == "direction":
        return [(groups, rows, d_in), (groups, rows, d_in + 1)]
    if key == "second_moment":
        return [(groups, d_in + 1, d_in + 1)]
    if key == "factor":
        return [(groups, blocks, d_in // blocks, d_in // blocks) for blocks in range(1, d_in + 1) if d_in % blocks == 0]
    return [(groups, d_in)]
