"""One step of LNB, stage by stage: momentum, statistics, solve, trust region, apply. Data flows one way.

Notation: ``g~`` the averaged gradient, ``h`` the direction (``metric h = g~``),
``theta <- theta - lr (scale h + weight_decay theta)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lnb.apply import apply
from lnb.config import Config
from lnb.context import StepContext
from lnb.damping import Agreement, observe_agreement
from lnb.momentum import adam_directions, average_gradients
from lnb.routes.fused import Fused, FusedShare, prepare_fused
from lnb.routes.prepared import Prepared, PreparedShare, prepare
from lnb.scratch import Scratch
from lnb.solvers.solve import Solution, SolverInputs, solve
from lnb.statistics.arenas import Arenas
from lnb.statistics.averages import average_statistics
from lnb.statistics.input_sizes import select_input_sizes
from lnb.statistics.split_refresh import refresh_over
from lnb.trust_regions.lengths import Lengths, in_region, measure_lengths, products_of, region_scales, shortened
from lnb.verdict import Verdict

StagesOf = Callable[[StepContext, Verdict, Config, Arenas, Scratch], "Stages"]


@dataclass
class Memory:
    """What one optimizer keeps from step to step beside its state."""

    arenas: Arenas
    scratch: dict[torch.device, Scratch]
    prepared: dict[torch.device, Prepared]
    fused: dict[torch.device, Fused]
    stages: StagesOf | None = None  # what makes the steps of shards

    @classmethod
    def empty(cls, stages: StagesOf | None = None) -> Memory:
        """The memory with which a new optimizer, or a copy of one, starts."""
        return cls(Arenas(), {}, {}, {}, stages)


@dataclass
class Outcome:
    """What a step did to the parameters of one device, for :class:`lnb.reports.diagnostics.LayerRecords`.

    Attributes:
        context: the layers and other parameters.
        solution: the layers' directions.
        products: ``<h, g~>`` of every layer and of every other parameter, ``[layers + others]``: NaN or infinite where there
            is no finite direction.
    """

    context: StepContext
    solution: Solution
    products: Tensor


def make_step(context: StepContext, verdict: Verdict, config: Config, memory: Memory) -> list[Outcome]:
    """Make the step, as far as ``verdict`` allows. A layer without a finite direction stands still; the others move.

    All directions are known before a parameter is written.

    Returns:
        The outcome on every device.
    """
    shares = [_share(part, verdict, config, memory) for part in context.by_device()]
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
    return [Outcome(share.context, share.solution, share.products) for share in shares]


class Stages(Protocol):
    """The part of a step that one device makes."""

    context: StepContext
    solution: Solution
    products: Tensor

    def direct(self) -> None:
        """Momentum, statistics, solve: the directions."""

    def gain(self) -> Tensor:
        """What the global region sums."""

    def bound(self, total: Tensor | None) -> None:
        """Trust region: how far to go; ``total`` is the sum of all devices' gains where there are several."""

    def apply(self) -> None:
        """Move the parameters."""


def _share(context: StepContext, verdict: Verdict, config: Config, memory: Memory) -> Stages:
    """The stages in the form that serves this step."""
    device = context.parameters[0].device
    scratch = memory.scratch.setdefault(device, Scratch())
    if memory.stages is not None:
        return memory.stages(context, verdict, config, memory.arenas, scratch)
    fused = memory.fused.pop(device, None)
    if fused is None or not fused.standing.holds(context) or not fused.standing.lies_where_it_lay():
        fused = prepare_fused(context, config, memory.arenas, scratch)
    if fused is not None:
        memory.fused[device] = fused
        return FusedShare(fused, context, verdict, config, memory.arenas)
    prepared = memory.prepared.pop(device, None)
    if device.type == "cpu" and verdict.known:
        if prepared is None or not prepared.fits(context):
            prepared = prepare(context, config, memory.arenas, scratch)
        if prepared is not None:
            memory.prepared[device] = prepared
            return PreparedShare(prepared, context, verdict, memory.arenas)
    return Share(context, verdict, config, memory.arenas, scratch)


class Share:
    """The stages for every setting and device."""

    solution: Solution
    others: list[Tensor]
    products: Tensor
    scales: Tensor
    shorter: dict[nn.Parameter, Tensor]
    lengths: Lengths | None = None
    weight_norms: Tensor | None = None

    def __init__(
        self, context: StepContext, verdict: Verdict, config: Config, arenas: Arenas, scratch: Scratch
    ) -> None:
        self.context, self.verdict, self.config = context, verdict, config
        self.arenas, self.scratch = arenas, scratch

    @property
    def shortens(self) -> bool:
        """Whether anything beside the trust region bounds the steps."""
        return bool(self.context.layers) and (
            self.config.damping != "none" or self.config.max_relative_change is not None
        )

    def direct(self) -> None:
        """Momentum, statistics, solve."""
        context, verdict, config, arenas = self.context, self.verdict, self.config, self.arenas
        averages = average_gradients(context, verdict, config, self.scratch, arenas)
        average_statistics(context.layers, averages, verdict)
        select_input_sizes(context.layers, arenas)  # side by side in the layers' order, as prepared steps read them
        self.refresh(averages)
        self.agreement: Agreement | None = None
        if config.damping == "agreement" and context.layers:
            self.agreement = observe_agreement(context.layers, verdict, config, arenas)
        self.solution = self.solve(averages)
        if config.others == "adamw":
            self.others = adam_directions(context, averages, verdict, config.b_others, arenas)
        else:
            self.others = [averages[parameter] for parameter in context.others]
        self.products = products_of(context, self.solution, self.others, averages)
        self.averages = averages

    def solve(self, averages: dict[nn.Parameter, Tensor]) -> Solution:
        """The directions of the layers."""
        return solve(SolverInputs(self.context.layers, averages, self.verdict, self.agreement))

    def refresh(self, averages: dict[nn.Parameter, Tensor]) -> None:
        """The factors of the layers that are due."""
        due = [each for each in self.context.layers if each.config.factored]
        refresh_over(self.context.sharers, due, averages, self.verdict, self.arenas)

    def gain(self) -> Tensor:
        """What the global region sums."""
        return in_region(self.products, self.context, self.config).sum()

    def bound(self, total: Tensor | None) -> None:
        """Trust region."""
        context, config = self.context, self.config
        directions = [part for parts in self.solution.parts for part in parts] + self.others
        self.scales = region_scales(context, directions, self.products, self.verdict, config, total)
        self.shorter = {}
        if self.shortens:
            if self.lengths is None:
                self.lengths = measure_lengths(context, self.solution, self.averages, self.agreement)
            limits = self.agreement, self.scales, self.verdict, config, self.arenas, self.weight_norms
            self.scales, self.shorter = shortened(context, self.solution, self.lengths, *limits)

    def apply(self) -> None:
        """Move the parameters."""
        directions = [part for parts in self.solution.parts for part in parts] + self.others
        apply(self.context, directions, self.scales, self.shorter, self.verdict, self.config)
