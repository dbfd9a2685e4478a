"""The optimizers by name, behind one interface: several torch optimizers may share a model's parameters."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import lnb
from lnb.cli.settings import with_dtypes
from lnb.config import Config
from lnb_bench.training.errors import TrainingError
from lnb_bench.training.outside import OUTSIDE, outside_parts, split_settings
from lnb_bench.training.peers import PEERS, load_peer, matrices_and_others
from lnb_bench.training.state_check import check_moments

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, with what settings.

    Attributes:
        name: one of :data:`OPTIMIZERS`.
        lr: learning rate; None for the optimizer's default in :data:`DEFAULT_LR`.
        weight_decay: decoupled weight decay; None for the optimizer's default.
        settings: further keyword arguments of the optimizer (of Muon's part for ``"muon"``), and those of
            :mod:`lnb_bench.training.outside`.
        warmup: share of the steps over which the rate rises linearly to its full height, in [0, 1).
    """

    name: str
    lr: float | None = None
    weight_decay: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.name!r} must be one of {', '.join(OPTIMIZERS)}")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup!r} must be at least 0 and below 1")

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return DEFAULT_LR[self.name] if self.lr is None else self.lr


class OptimizerGroup:
    """Optimizers that together move all parameters of one model, and their learning-rate schedule.

    Args:
        parts: the optimizers, in the order in which they are stepped; a parameter is in two of them only where the second does
            what :mod:`lnb_bench.training.outside` offers.
        schedule: ``"constant"``, or ``"cosine"`` from the full rate down to zero at ``steps``.
        steps: length of the run.
        warmup: share of the steps, before the schedule, over which the rate rises linearly.
    """

    def __init__(self, parts: list[Optimizer], schedule: str, steps: int, warmup: float = 0.0) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule!r} must be one of {', '.join(SCHEDULES)}")
        self.parts = parts
        rising = round(warmup * steps)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            if schedule == "constant":
                return 1.0
            return 0.5 * (1.0 + math.cos(math.pi * (min(step, steps) - rising) / (steps - rising)))

        self._schedulers = [LambdaLR(part, factor) for part in parts]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show the averaged weights of those optimizers that average them, as long as the body runs."""
        averaging: list[Any] = [part for part in self.parts if hasattr(part, "eval") and hasattr(part, "train")]
        for part in averaging:
            part.eval()
        try:
            yield
        finally:
            for part in averaging:
                part.train()

    def zero_grad(self) -> None:
        """Reset all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Move all parameters, then advance the schedule."""
        for part in self.parts:
            part.step()
        for scheduler in self._schedulers:
            scheduler.step()

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.parts[0].param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """State of every optimizer and schedule."""
        return {
            "parts": [part.state_dict() for part in self.parts],
            "schedulers": [scheduler.state_dict() for scheduler in self._schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it was saved by another set of optimizers.
            CheckpointError: the state of one of torch's optimizers has other shapes than the parameters.
        """
        if len(state["parts"]) != len(self.parts):
            raise ValueError(f"state of {len(state['parts'])} optimizers, this run has {len(self.parts)}")
        made = state["schedulers"][0]["last_epoch"]  # steps
        for part, saved in zip(self.parts, state["parts"], strict=True):
            if type(part) in _KEPT:
                names = _KEPT[type(part)](part.param_groups[0]) if made else ()
                check_moments(saved, [parameter for group in part.param_groups for parameter in group["params"]], names)
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        for scheduler, saved in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)


class MatrixMuon(torch.optim.Muon):
    """``torch.optim.Muon`` that also takes weights of more than two dimensions, as matrices ``[d_out, rest]``.

    It moves two-dimensional views that share memory with the weights.
    """

    def __init__(self, weights: list[Tensor], **settings: Any) -> None:
        self._weights = weights
        super().__init__([nn.Parameter(weight.detach().flatten(1)) for weight in weights], **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step with the weights' gradients."""
        views = [view for group in self.param_groups for view in group["params"]]
        for weight, view in zip(self._weights, views, strict=True):
            view.grad = None if weight.grad is None else weight.grad.flatten(1)
        return super().step(closure)  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of the weights and of their views."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None


# What torch's optimizers keep of every parameter once they have made a step, by the settings of their groups.
_KEPT: dict[type[Optimizer], Callable[[dict[str, Any]], tuple[str, ...]]] = {
    torch.optim.AdamW: lambda group: (
        "step",
        "exp_avg",
        "exp_avg_sq",
        *(("max_exp_avg_sq",) if group["amsgrad"] else ()),
    ),
    torch.optim.NAdam: lambda group: ("step", "mu_product", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: lambda group: ("momentum_buffer",) if group["momentum"] else (),
    MatrixMuon: lambda group: ("momentum_buffer",),
}


def build_optimizer(config: OptimizerConfig, model: nn.Module, schedule: str, steps: int) -> OptimizerGroup:
    """Optimizers over all parameters of ``model``.

    Raises:
        ValueError: a setting is not allowed.
        TypeError: a setting is unknown to the optimizer.
    """
    settings, outside = split_settings(config.settings)
    try:
        parts = OPTIMIZERS[config.name](dataclasses.replace(config, settings=settings), model)
    except (ValueError, TypeError, TrainingError):
        raise
    except Exception as error:  # optimizers of others check little of what they are given
        raise ValueError(
            f"the optimizer {config.name} does not take the settings {config.settings} ({type(error).__name__}: {error})"
        ) from error
    parts += outside_parts(outside, trainable(model), config.rate)
    free = config.name in PEERS and PEERS[config.name].schedule_free
    return OptimizerGroup(parts, "constant" if free else schedule, steps, config.warmup)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _with_decay(config: OptimizerConfig) -> dict[str, Any]:
    chosen = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    return {"lr": config.rate, **chosen, **config.settings}


def _lnb(config: OptimizerConfig, model: nn.Module, preset: str) -> list[Optimizer]:
    return [lnb.LNB(model, preset=preset, **with_dtypes(_with_decay(config)))]


def _adamw(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
    return [torch.optim.AdamW(trainable(model), **_with_decay(config))]


def _nadamw(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
    """AdamW with Nesterov's momentum, as AlgoPerf's baseline (arXiv:2306.07179); its weight decay is AdamW's."""
    chosen = {"weight_decay": 0.01, "decoupled_weight_decay": True, **_with_decay(config)}
    return [torch.optim.NAdam(trainable(model), **chosen)]


def _sgd(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
    return [torch.optim.SGD(trainable(model), **{"momentum": 0.9, **_with_decay(config)})]


def _muon(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
    """Muon for the weights of linear and convolution layers, AdamW for the rest, one lr in AdamW's unit for both."""
    matrices, others = matrices_and_others(model)
    decay = 0.01 if config.weight_decay is None else config.weight_decay
    settings = {"adjust_lr_fn": "match_rms_adamw", **config.settings}
    parts: list[Optimizer] = []
    if matrices:
        parts.append(MatrixMuon(matrices, lr=config.rate, weight_decay=decay, **settings))
    if others:
        parts.append(torch.optim.AdamW(others, lr=config.rate, weight_decay=decay))
    return parts


def _peer(name: str) -> Callable[[OptimizerConfig, nn.Module], list[Optimizer]]:
    def build(config: OptimizerConfig, model: nn.Module) -> list[Optimizer]:
        return PEERS[name].build(name, model, _with_decay(config))

    return build


def known_settings(name: str) -> tuple[str, ...]:
    """The settings that the optimizer ``name`` can be given by name, those from outside among them.

    Raises:
        PeerError: its package is missing or cannot be imported.
    """
    if name in PRESETS:
        return (*(entry.name for entry in dataclasses.fields(Config)), *OUTSIDE)
    made_by = load_peer(name) if name in PEERS else _CLASSES[name]
    return (*inspect.signature(made_by).parameters, *OUTSIDE)


def require_optimizer(name: str) -> None:
    """Require, before anything long starts, that the optimizer ``name`` can be built here.

    Raises:
        PeerError: its package is missing or cannot be imported.
    """
    if name in PEERS:
        load_peer(name)


_CLASSES: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "nadamw": torch.optim.NAdam,
    "muon": torch.optim.Muon,
    "sgd": torch.optim.SGD,
}
PRESETS = {"lnb": "fast", "lnb-paper": "paper", "lnb-full-batch": "full_batch"}
OPTIMIZERS: dict[str, Callable[[OptimizerConfig, nn.Module], list[Optimizer]]] = {
    **{name: partial(_lnb, preset=preset) for name, preset in PRESETS.items()},
    "adamw": _adamw,
    "nadamw": _nadamw,
    "muon": _muon,
    "sgd": _sgd,
    **{name: _peer(name) for name in PEERS},
}
DEFAULT_LR = {name: lnb.DEFAULT_LR[preset] for name, preset in PRESETS.items()}
DEFAULT_LR |= {"adamw": 1e-3, "nadamw": 1e-3, "muon": 3e-3, "sgd": 0.05}
DEFAULT_LR |= {name: peer.lr for name, peer in PEERS.items()}
