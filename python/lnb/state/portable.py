"""State as ``torch.distributed.checkpoint`` keeps it: by parameter and parameter group, and present before the first step.

``get_optimizer_state_dict`` and ``set_optimizer_state_dict`` drop everything of a state dict but ``state`` and
``param_groups``, and want a fresh optimizer to have all of its tensors, which they ask for by a step with zero gradients and
``lr = 0``. So the step count, the settings and the plan also stand in every group, as one line of JSON under
:data:`PROGRESS`, and such a step makes the state by running on made-up inputs. Until a real step is made that state is a
placeholder, and the first step drops it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lnb.layers.capture import Capture
from lnb.layers.claimed import Layer
from lnb.layers.packed import PackedCapture

PROGRESS = "lnb"
"""The key of a parameter group under which the optimizer's progress stands."""


def write_progress(param_groups: Iterable[dict[str, Any]], own: dict[str, Any]) -> None:
    """Put ``own``, the optimizer's entries of a state dict, into every group."""
    text = json.dumps(own)
    for group in param_groups:
        group[PROGRESS] = text


def with_progress(state_dict: Any) -> Any:
    """``state_dict`` with the optimizer's own entries, from its groups where they are missing beside them.

    Raises:
        ValueError: the groups' entry is not what an LNB writes.
    """
    if (
        not isinstance(state_dict, dict)
        or "lnb_format" in state_dict
        or not isinstance(state_dict.get("param_groups"), list)
    ):
        return state_dict
    texts = [group[PROGRESS] for group in state_dict["param_groups"] if isinstance(group, dict) and PROGRESS in group]
    if not texts:
        return state_dict
    try:
        own = json.loads(texts[0])
        if not isinstance(own, dict):
            raise TypeError("it must hold an object")
    except (TypeError, ValueError) as error:
        raise ValueError(f"state_dict: {PROGRESS}={texts[0]!r} of a group is not what LNB writes: {error}") from error
    return {**own, **state_dict}


def asks_for_state(param_groups: Iterable[dict[str, Any]], states: Any, layers: Iterable[Layer]) -> bool:
    """Whether a step is meant to create the state: there is none yet, every rate is 0, and gradients came without inputs."""
    layers = list(layers)
    gathered = any(capture.gathered for layer in layers for capture in layer.captures)
    if states or gathered or all(layer.weight.grad is None for layer in layers):
        return False
    return all(float(group["lr"]) == 0 for group in param_groups)  # last: a rate on a device would be waited for


def make_up_inputs(layers: Iterable[Layer]) -> None:
    """Have every layer that has a gradient report one sample: a white one for second moments, a zero one for kept inputs."""
    for layer in layers:
        if layer.weight.grad is None:
            continue
        for module, capture in zip(layer.modules, layer.captures, strict=True):
            _make_up(module, capture)


def _make_up(module: nn.Module, capture: Capture) -> None:
    if isinstance(capture, PackedCapture):
        for name, part in capture.parts.items():
            if name == "qkv":
                _make_up(module, part)
        return
    if capture.moments_on and capture.probe is not None:
        size = capture.probe_shape[-1]
        eye = torch.eye(size, dtype=capture.probe.dtype, device=capture.probe.device)
        capture.probe.grad = eye.expand(capture.probe.shape).clone()
    if capture.channels_on and capture.channel_probe is not None:
        sums = torch.ones_like(capture.channel_probe)
        sums[0] = 0
        capture.channel_probe.grad = sums
    if capture.inputs_on:
        capture.inputs.append(_zero_input(module, capture))


def _zero_input(module: nn.Module, capture: Capture) -> Tensor:
    like = next(module.parameters())
    if isinstance(module, nn.Conv2d):
        spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return like.new_zeros(1, module.in_channels, *spans)
    return like.new_zeros(1, capture.d_in)
