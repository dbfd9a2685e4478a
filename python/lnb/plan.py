"""What a step will do for each layer, and what that costs: by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lnb.blocks import Block
from lnb.capture import statistics_dtype
from lnb.config import WITH_FACTOR, Config
from lnb.factored import block_count
from lnb.orthogonalize import INVERSE_ROOT_FLOPS, STEPS


@dataclass(frozen=True)
class PlanRow:
    """One layer.

    Attributes:
        layer: its name.
        shape: groups, outputs per group, inputs.
        statistics: where the metric comes from.
        solver: how it is solved.
        solve_flops: floating-point operations of the solution and the trust region, every step.
        refresh_flops: of one refresh, without the product over rows.
        flops_per_row: of one input row, on the steps that read inputs.
        state_bytes: what the optimizer keeps, gradient averages included.
        reason: why.
    """

    layer: str
    shape: tuple[int, int, int]
    statistics: str
    solver: str
    solve_flops: int
    refresh_flops: int
    flops_per_row: int
    state_bytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """The table that :meth:`lnb.LNB.plan` returns: iterate over its rows, or print it."""

    rows: tuple[PlanRow, ...]

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def state_bytes(self) -> int:
        """Bytes kept for all layers."""
        return sum(row.state_bytes for row in self.rows)

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [
            ("layer", "shape", "statistics", "solver", "MFLOP/step", "MFLOP/refresh", "kFLOP/row", "state MB", "why")
        ]
        for row in self.rows:
            numbers = (row.solve_flops / 1e6, row.refresh_flops / 1e6, row.flops_per_row / 1e3, row.state_bytes / 1e6)
            shape = "x".join(map(str, row.shape if row.shape[0] > 1 else row.shape[1:]))
            table.append((row.layer, shape, row.statistics, row.solver, *(f"{n:.3g}" for n in numbers), row.reason))
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]) - 1)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
            for line in table
        ]
        return "\n".join([*lines, f"state of all layers: {self.state_bytes / 1e6:.3g} MB"])


def plan_block(block: Block, config: Config) -> PlanRow:
    """The plan of one layer whose weight and bias both move."""
    groups, rows, d_in = block.shape
    columns = d_in + (block.bias is not None)
    item = statistics_dtype(block.weight.dtype).itemsize
    scalar = 4  # step counters are float32
    numbers = groups * rows * columns
    scalars = len(block.parameters)
    count = block_count(d_in, config.block_size)
    size = d_in // count
    spectral = config.trust_region == "spectral"
    solve = refresh = kept = 0
    per_row = groups * (d_in + 1) ** 2 // config.sample_every  # one half of the symmetric product, two operations each
    if config.factored and config.trust_region == "balanced":
        outputs = block_count(rows, config.block_size)
        side = rows // outputs
        solve += 2 * numbers * side
        refresh += groups * (outputs * INVERSE_ROOT_FLOPS * side**3 + 2 * rows * columns * (size + side))
        kept += groups * outputs * side**2 * (2 if config.b_s > 0 else 1)
    if config.factored:
        solver = "factor" if count == 1 else f"factor, {count} blocks of {size}"
        solve += (2 if spectral else 1) * 2 * numbers * size
        refresh += groups * count * size**3
        kept += groups * count * size**2 + groups * (columns - d_in) * d_in
        needed = config.trust_region in WITH_FACTOR
        reason = "the trust region needs a factor" if needed else "a factor serves until the next refresh"
    elif config.solver == "arrow":
        solver, solve, reason = "arrow", 6 * numbers, "the preconditioner alone was asked for"
    elif config.solver == "dual":
        solver, reason = "dual", "exact, in the smaller of the spaces of rows and of inputs"
        per_row = 4 * numbers
    elif config.solver == "matrix_free":
        solver, reason = f"{config.cg_iterations} CG iterations", "products with the kept inputs, no matrix is formed"
        per_row = 4 * numbers * (config.cg_iterations + 1)
    else:
        solver, reason = f"{config.cg_iterations} CG iterations", "warm-started on the second moment"
        solve = (config.cg_iterations + 1) * 2 * numbers * columns
    if spectral:
        short, long = sorted((rows, columns))
        solve += groups * STEPS * (4 * short * short * long + 2 * short**3)
    if config.keeps_second_moment:
        kept += groups * (d_in + 1) ** 2
        scalars += 1
    if config.keeps_direction:
        kept += groups * rows * columns
    if config.keeps_feature_moments:
        kept += 2 * groups * d_in
        scalars += 1
    state = item * (numbers + kept) + scalar * scalars
    return PlanRow(block.name, block.shape, _statistics(config), solver, solve, refresh, per_row, state, reason)


def _statistics(config: Config) -> str:
    if config.solver in ("matrix_free", "dual"):
        return "kept inputs"
    every = "every step" if config.refresh_every == 1 else f"every {config.refresh_every} steps"
    return every + (f", average {config.b_s:g}" if config.b_s > 0 else "")
