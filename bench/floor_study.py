"""How far a layer's radius may shrink: the floor of :mod:`lnb.damping`, changed alone.

    python bench/floor_study.py --data DIR [--seeds 4] [--json bench/results/floor.json] [--page docs/presets.md]

As :mod:`defaults_study`, whose cells it has, and a regression without noise: Friedman's function of ten inputs (J. Friedman,
"Multivariate adaptive regression splines", 1991, equation 61), 20,000 rows. The floor is a constant of the code and no setting;
a row changes it where the rules read it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from defaults_study import CELLS as OTHERS
from defaults_study import DEFAULT, final_loss, study, table
from gptq_study import Cell

from lnb import damping
from lnb.routes import prepared
from lnb_bench.training.data.tables import standardised
from lnb_bench.training.models import MLP
from lnb_bench.training.objectives import LeastSquares
from lnb_bench.training.tasks import Task

BEGIN, END = "<!-- table of bench/floor_study.py -->", "<!-- end of table of bench/floor_study.py -->"
FLOORS = (1e-4, 0.1, 0.4, 1.0)


class Friedman(Cell):
    """``10 sin(pi x_1 x_2) + 20 (x_3 - 1/2)^2 + 10 x_4 + 5 x_5`` of ten uniform inputs, learnt by an MLP."""

    def make(self, data: Path | None) -> Task:
        """The task; it needs no data."""
        x = np.random.default_rng(0).random((20_000, 10))
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        build = partial(MLP, 10, 1, **self.options)
        return Task(self.task, *standardised(x, y), build, LeastSquares(), self.batch_size, self.steps)


CELLS = {
    "friedman": Friedman(
        "MLP 10-64-64-64-1, Friedman's function", "friedman", 600, 256, 4000,
        {"width": 64, "depth": 3, "activation": "relu"},
    ),
    **OTHERS,
}  # fmt: skip


def variants() -> dict[str, float]:
    """The floor of every row, by its name; the default comes first."""
    return {DEFAULT: damping.FLOOR, **{f"floor={floor:g}": floor for floor in FLOORS}}


def final_loss_of(cell: Cell, task: Task, floor: float, seed: int) -> float:
    """Of one training with this floor in all rules that read it."""
    with patch.object(damping, "FLOOR", floor), patch.object(prepared, "FLOOR", floor):
        return final_loss(cell, task, {}, seed)


def tables(kept: dict[str, Any]) -> str:
    """The page's table: a row for every floor, a column for every model."""
    return table(kept, CELLS, variants(), "changed", f"the loss with {damping.FLOOR:g}, the default")


def main() -> None:
    study(__doc__, CELLS, variants(), final_loss_of, tables, (BEGIN, END))


if __name__ == "__main__":
    main()
