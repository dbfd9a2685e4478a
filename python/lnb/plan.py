"""What a step will do for each layer, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lnb.config import Config
from lnb.context import gathered_moments, moment_blocks
from lnb.layers.capture import Samples, statistics_dtype
from lnb.layers.claimed import Layer
from lnb.planning.choice import Choice
from lnb.planning.cost import Cost, layer_cost
from lnb.planning.memory import input_bytes, moment_bytes, scratch_bytes, state_bytes
from lnb.planning.rates import Rates
from lnb.statistics.factored import block_count
from lnb.statistics.orthogonalize import orthogonalize_flops
from lnb.statistics.split_refresh import shared_out

_HEADINGS = (
    "layer",
    "shape",
    "samples",
    "statistics",
    "solver",
    "MFLOP/step",
    "MFLOP/refresh",
    "kFLOP/sample",
    "stat ms",
    "solve ms",
    "region ms",
    "passes ms",
    "state MB",
    "why",
)


@dataclass(frozen=True)
class PlanRow:
    """One layer.

    Attributes:
        layer: its name.
        shape: groups, outputs per group, inputs.
        statistics: where the metric comes from, and how often.
        solver: how it is solved.
        refresh_every: steps from one gathering of statistics to the next.
        sample_every: of how many samples one is read for them.
        solve_flops: floating-point operations of the solution and the trust region, every step.
        refresh_flops: of one refresh, without the product over samples.
        flops_per_sample: of one sample, on the steps that read inputs.
        state_bytes: what the optimizer keeps, gradient averages included.
        input_bytes: inputs kept from the backward pass to the step; 0 until samples are known.
        moment_bytes: the second moment that lives from the backward pass to the step, on steps that gather one.
        scratch_bytes: working memory that is kept from step to step.
        refreshed_bytes: the part of the state that a refresh writes: with ``split_refresh=True`` ranks send it to each other.
        samples: of one step; None until a backward pass was seen.
        cost: predicted seconds; None until samples are known.
        reason: why.
    """

    layer: str
    shape: tuple[int, int, int]
    statistics: str
    solver: str
    refresh_every: int
    sample_every: int
    solve_flops: int
    refresh_flops: int
    flops_per_sample: int
    state_bytes: int
    input_bytes: int
    moment_bytes: int
    scratch_bytes: int
    refreshed_bytes: int
    samples: int | None
    cost: Cost | None
    reason: str

    def cells(self) -> tuple[str, ...]:
        """The row as :data:`_HEADINGS` has it."""
        numbers = (self.solve_flops / 1e6, self.refresh_flops / 1e6, self.flops_per_sample / 1e3)
        cost = self.cost
        times: tuple[str, ...] = ("-",) * 4
        if cost is not None:
            times = tuple(f"{1e3 * t:.3g}" for t in (cost.statistics, cost.solve, cost.region, cost.passes))
        return (
            self.layer,
            "x".join(map(str, self.shape if self.shape[0] > 1 else self.shape[1:])),
            "-" if self.samples is None else str(self.samples),
            self.statistics,
            self.solver,
            *(f"{n:.3g}" for n in numbers),
            *times,
            f"{(self.state_bytes + self.input_bytes) / 1e6:.3g}",
            self.reason,
        )


@dataclass(frozen=True)
class Plan:
    """The table that :meth:`lnb.LNB.plan` returns: iterate over its rows, or print it.

    Times are per step on average, in milliseconds; ``passes`` is the layer's forward and backward.

    Attributes:
        rows: the layers.
        other_bytes: state of parameters of no layer.
        source: where the rates behind the times are from.
    """

    rows: tuple[PlanRow, ...]
    other_bytes: int = 0
    source: str = ""

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def state_bytes(self) -> int:
        """Bytes kept for all layers."""
        return sum(row.state_bytes for row in self.rows)

    @property
    def gathered_bytes(self) -> int:
        """Bytes that live from the backward pass to the step where statistics are gathered: second moments, kept inputs."""
        return sum(row.moment_bytes + row.input_bytes for row in self.rows)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of working memory on the host, kept for the next step; they are not part of the state."""
        return sum(row.scratch_bytes for row in self.rows)

    def refresh_seconds(self, ranks: int, bytes_per_second: float) -> tuple[float, float] | None:
        """Seconds that a refresh of all layers takes each rank: where every rank makes it, and with ``split_refresh=True``.

        The second is lower where factors take longer to make than to send. None until samples are known.

        Args:
            ranks: how many have whole copies of the model.
            bytes_per_second: how much a rank receives from the others.

        Raises:
            ValueError: there is no such number.
        """
        if not (isinstance(ranks, int) and ranks >= 1):
            raise ValueError(f"ranks={ranks!r} must be a whole number of at least 1")
        if not bytes_per_second > 0:
            raise ValueError(f"bytes_per_second={bytes_per_second!r} must be above 0")
        costs = [row.cost.refresh for row in self.rows if row.cost is not None]
        if len(costs) < len(self.rows) or not costs:
            return None
        most = max(sum(costs[i] for i in share) for share in shared_out(costs, ranks))
        received = sum(row.refreshed_bytes for row in self.rows) * (ranks - 1) / ranks
        return sum(costs), most + received / bytes_per_second

    @property
    def overhead(self) -> float | None:
        """Predicted time of statistics, solutions and trust regions relative to the layers' forward and backward passes;
        None until the samples of any layer are known."""
        costs = [row.cost for row in self.rows if row.cost is not None]
        return sum(cost.overhead for cost in costs) / sum(cost.passes for cost in costs) if costs else None

    def __str__(self) -> str:
        table = [_HEADINGS, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(_HEADINGS) - 1)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
            for line in table
        ]
        others = f", of other parameters: {self.other_bytes / 1e6:.3g} MB" if self.other_bytes else ""
        gathered = f"; from backward pass to step: {self.gathered_bytes / 1e6:.3g} MB"
        scratch = f"; to work in: {self.scratch_bytes / 1e6:.3g} MB" if self.scratch_bytes else ""
        lines.append(f"state of all layers: {self.state_bytes / 1e6:.3g} MB{others}{gathered}{scratch}")
        if self.overhead is None:
            lines.append("times are predicted once a backward pass and a step have shown how many samples there are")
        else:
            lines.append(
                f"predicted overhead of statistics, solutions and trust regions: {self.overhead:.1%} of the layers' forward "
                f"and backward passes (rates {self.source})"
            )
        return "\n".join(lines)


def plan_layer(layer: Layer, choice: Choice, samples: Samples | None, rates: Rates | None) -> PlanRow:
    """The plan of one layer whose weight and bias both move.

    Args:
        layer: the layer.
        choice: its settings, and why.
        samples: of one step, None if not known.
        rates: of its device; needed where ``samples`` are known.
    """
    config = choice.config
    solver, reason = config.method.describe(layer, config)
    solve, refresh, per_sample = _flops(layer, config)
    return PlanRow(
        layer=layer.name,
        shape=layer.shape,
        statistics=_statistics(config),
        solver=solver,
        refresh_every=config.refresh_every,
        sample_every=config.sample_every,
        solve_flops=solve,
        refresh_flops=refresh,
        flops_per_sample=per_sample,
        state_bytes=state_bytes(layer, config),
        input_bytes=0 if samples is None else input_bytes(layer, config, samples),
        moment_bytes=moment_bytes(layer, config),
        scratch_bytes=scratch_bytes(layer, config),
        refreshed_bytes=_refreshed_bytes(layer, config),
        samples=None if samples is None else samples.count,
        cost=None if samples is None or rates is None else layer_cost(layer, config, samples, rates),
        reason="; ".join(filter(None, (reason, choice.reason))),
    )


def _refreshed_bytes(layer: Layer, config: Config) -> int:
    """Second moment, factor and mean of the inputs, and in two-sided regions the outputs' moment and root."""
    if not config.factored:
        return 0
    groups, rows, d_in = layer.shape
    blocks, kept = moment_blocks(layer, config), config.b_s > 0
    size = d_in // blocks
    numbers = d_in * size + (d_in if layer.bias is not None else 0) + kept * blocks * (size + 1) ** 2
    if config.region.two_sided:
        numbers += rows * (rows // block_count(rows, config.block_size)) * (1 + kept)
    return groups * numbers * statistics_dtype(layer.weight.dtype).itemsize


def _flops(layer: Layer, config: Config) -> tuple[int, int, int]:
    """FLOPs of one step's solution and trust region, of one refresh, and per sample that is read."""
    method = config.method
    solve, per_sample = method.step_flops(layer, config), method.sample_flops(layer, config)
    if config.region.whitens:
        solve += layer.groups * orthogonalize_flops(layer.shape[1], layer.matrix_columns)
    if not config.keeps_inputs:
        size = layer.d_in // moment_blocks(layer, config)
        per_sample += gathered_moments(layer, config) * layer.moment_flops(size) // config.sample_every
    return solve, method.refresh_flops(layer, config), per_sample


def _statistics(config: Config) -> str:
    if config.keeps_inputs:
        return "kept inputs"
    every = "every step" if config.refresh_every == 1 else f"every {config.refresh_every} steps"
    sample = "" if config.sample_every == 1 else f", 1 of {config.sample_every} samples"
    return every + sample + (f", average {config.b_s:.3g}" if config.b_s > 0 else "")
