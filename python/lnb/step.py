"""One step of LNB, stage by stage: momentum, statistics, solve, trust region, apply. Data flows one way.

Notation: ``g~`` the averaged gradient, ``h`` the direction (``metric h = g~``),
``theta <- theta - lr (scale h + weight_decay theta)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lnb.apply import apply
from lnb.arenas import Arenas
from lnb.averages import adam_directions, average_gradients
from lnb.config import Config
from lnb.damping import Agreement, observe_agreement
from lnb.fused import Fused, FusedShare, prepare_fused
from lnb.prepared import Prepared, PreparedShare, prepare
from lnb.refresh import refresh
from lnb.region import in_region, products_of, region_scales, shortened
from lnb.scratch import Scratch
from lnb.solve import Solution, solve
from lnb.verdict import Verdict
from lnb.work import Work


@dataclass
class Memory:
    """What one optimizer keeps from step to step beside its state."""

    arenas: Arenas
    scratch: dict[torch.device, Scratch]
    prepared: dict[torch.device, Prepared]
    fused: dict[torch.device, Fused]

    @classmethod
    def empty(cls) -> Memory:
        """As a new optimizer, or a copy of one, starts."""
        return cls(Arenas(), {}, {}, {})


@dataclass
class Outcome:
    """What a step did to the parameters of one device, for :class:`lnb.diagnostics.LayerRecords`.

    Attributes:
        work: the layers and other parameters.
        solution: the layers' directions.
        products: ``<h, g~>`` of every layer and of every other parameter, ``[layers + others]``: NaN or infinite where there
            is no finite direction.
    """

    work: Work
    solution: Solution
    products: Tensor


def make_step(work: Work, verdict: Verdict, config: Config, memory: Memory) -> list[Outcome]:
    """Make the step, as far as ``verdict`` allows. What has no finite direction stands still, alone.

    All directions are known before a parameter is written.

    Returns:
        What became of it, for every device.
    """
    shares = [_share(part, verdict, config, memory) for part in work.by_device()]
    for share in shares:
        share.direct()
    total = None
    if config.region.joint and len(shares) > 1:
        gains = [share.gain() for share in shares]
        total = torch.stack([gain.to(gains[0]) for gain in gains]).sum()
    for share in shares:
        share.bound(total)
    for share in shares:
        share.apply()
    return [Outcome(share.work, share.solution, share.products) for share in shares]


class _Stages(Protocol):
    """The part of a step that one device makes."""

    work: Work
    solution: Solution
    products: Tensor

    def direct(self) -> None:
        """Momentum, statistics, solve: where to go."""

    def gain(self) -> Tensor:
        """What the global region sums."""

    def bound(self, total: Tensor | None) -> None:
        """Trust region: how far to go; ``total`` is the sum of all devices' gains where there are several."""

    def apply(self) -> None:
        """Move the parameters."""


def _share(work: Work, verdict: Verdict, config: Config, memory: Memory) -> _Stages:
    """The stages in the form that serves this step."""
    device = work.parameters[0].device
    scratch = memory.scratch.setdefault(device, Scratch())
    fused = memory.fused.pop(device, None)
    if fused is None or not fused.standing.holds(work):
        fused = prepare_fused(work, config, memory.arenas, scratch)
    if fused is not None:
        memory.fused[device] = fused
        return FusedShare(fused, work, verdict, config, memory.arenas)
    prepared = memory.prepared.pop(device, None)
    if device.type == "cpu" and verdict.known:
        if prepared is None or not prepared.fits(work):
            prepared = prepare(work, config, memory.arenas, scratch)
        if prepared is not None:
            memory.prepared[device] = prepared
            return PreparedShare(prepared, work, verdict, config, memory.arenas)
    return _Share(work, verdict, config, memory.arenas, scratch)


class _Share:
    """The stages for every setting and device."""

    solution: Solution
    others: list[Tensor]
    products: Tensor
    scales: Tensor
    shorter: dict[nn.Parameter, Tensor]

    def __init__(self, work: Work, verdict: Verdict, config: Config, arenas: Arenas, scratch: Scratch) -> None:
        self.work, self.verdict, self.config = work, verdict, config
        self.arenas, self.scratch = arenas, scratch

    def direct(self) -> None:
        work, verdict, config, arenas = self.work, self.verdict, self.config, self.arenas
        averages = average_gradients(work, verdict, config, self.scratch, arenas)
        self.agreement: Agreement | None = None
        if config.damping == "agreement" and work.blocks:
            self.agreement = observe_agreement(work.blocks, verdict, config, arenas)
        refresh([block for block in work.blocks if block.config.factored], averages, verdict, arenas)
        self.solution = solve(work.blocks, averages, verdict, self.agreement)
        if config.others == "adamw":
            self.others = adam_directions(work, averages, verdict, config.b_others, arenas)
        else:
            self.others = [averages[parameter] for parameter in work.others]
        self.products = products_of(work, self.solution, self.others, averages)
        self.averages = averages

    def gain(self) -> Tensor:
        return in_region(self.products, self.work, self.config).sum()

    def bound(self, total: Tensor | None) -> None:
        work, config = self.work, self.config
        directions = [part for parts in self.solution.parts for part in parts] + self.others
        self.scales = region_scales(work, directions, self.products, self.verdict, config, total)
        self.shorter = {}
        if work.blocks and (config.damping != "none" or config.max_relative_change is not None):
            self.scales, self.shorter = shortened(
                work, self.solution, self.averages, self.agreement, self.scales, self.verdict, config, self.arenas
            )

    def apply(self) -> None:
        directions = [part for parts in self.solution.parts for part in parts] + self.others
        apply(self.work, directions, self.scales, self.shorter, self.verdict, self.config)
