"""What can be asked of any optimizer from outside: averaged iterates, and cautious weight decay.

Both are written as optimizers over all parameters, stepped after those that move them, so that schedules, evaluation and
checkpoints treat them as any other part. As settings of an optimizer they are ``average_iterates`` and ``cautious_decay``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lnb_bench.training.records import is_number, shortened

OUTSIDE = ("average_iterates", "cautious_decay")


class AveragedIterates(Optimizer):
    """Keeps an exponential average of the parameters, shown between :meth:`eval` and :meth:`train`.

    Args:
        parameters: what the other optimizers move, of any shapes.
        decay: what the average keeps of itself per step, in (0, 1); less in the first steps, ``(1 + t) / (10 + t)`` in step
            ``t``, so that the start is soon forgotten.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        super().__init__(parameters, {"lr": 0.0, "decay": decay})
        for parameter in self._parameters():
            self.state[parameter].update(average=parameter.detach().clone(), steps=0)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take the parameters, as they are now, into the average."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["steps"] += 1
                kept = min(group["decay"], (1 + state["steps"]) / (10 + state["steps"]))
                state["average"].lerp_(parameter, 1 - kept)

    def eval(self) -> None:
        """Show the average; the next call of :meth:`train` takes it back."""
        self._swap()

    def train(self) -> None:
        """Show the parameters that are trained."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter in self._parameters():
            average = self.state[parameter]["average"]
            shown = average.clone()
            average.copy_(parameter)
            parameter.copy_(shown)


class CautiousDecay(Optimizer):
    """Decoupled weight decay where it agrees with the step: only of entries that the step moved towards zero (arXiv:2510.12402).

    The step is what the parameters moved since the last call, whichever optimizers moved them.

    Args:
        parameters: what the other optimizers move, of any shapes.
        lr: their rate.
        decay: an entry loses ``lr * decay`` of its value before the step, > 0.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["before"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Decay the entries that have just been moved towards zero."""
        for group in self.param_groups:
            for parameter in group["params"]:
                before = self.state[parameter]["before"]
                shrinks = (before - parameter) * before >= 0
                parameter.sub_(before * shrinks, alpha=group["lr"] * group["decay"])
                before.copy_(parameter)


def split_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The settings of the optimizer itself, and those of :data:`OUTSIDE`, checked.

    Raises:
        ValueError: one of these is no number, or outside of its range.
    """
    outside = {name: settings[name] for name in OUTSIDE if name in settings}
    for name, value in outside.items():
        high = 1.0 if name == "average_iterates" else math.inf
        if not is_number(value) or not 0 < value < high:
            bound = " and below 1" if high == 1.0 else " and finite"
            raise ValueError(f"{name}={shortened(value)} must be a number above 0{bound}; leave it out to go without")
    return {name: value for name, value in settings.items() if name not in outside}, outside


def outside_parts(outside: dict[str, float], parameters: list[Any], lr: float) -> list[Optimizer]:
    """The optimizers that do what ``outside`` asks, in the order in which they are stepped; ``lr`` is the others' rate."""
    parts: list[Optimizer] = []
    if "cautious_decay" in outside:
        parts.append(CautiousDecay(parameters, lr, outside["cautious_decay"]))
    if "average_iterates" in outside:
        parts.append(AveragedIterates(parameters, outside["average_iterates"]))
    return parts
