"""What constants of :mod:`lnb.damping`, which are no settings, and ``output_ridge`` are worth: each changed alone, beside the
default.

    python bench/damping_study.py --data DIR [--seeds 4] [--json bench/results/damping.json] [--page docs/presets.md]

``FLOOR``: how far a layer's radius may shrink. ``TURNED``, ``TELLING``: when steps are found to go back and forth; with
``TURNED = 0``, never. ``RECOVER``: what a radius is multiplied by, at most, below the band of noise.

As :mod:`defaults_study`, whose cells it has, a regression without noise - Friedman's function of ten inputs (J. Friedman,
"Multivariate adaptive regression splines", 1991, equation 61), 20,000 rows - and the deep autoencoder of the suite, shorter.
A row changes a constant where the rules read it.
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
from lnb_bench.training.data.tables import standardised
from lnb_bench.training.models import MLP
from lnb_bench.training.objectives import LeastSquares
from lnb_bench.training.tasks import Task

BEGIN, END = "<!-- table of bench/damping_study.py -->", "<!-- end of table of bench/damping_study.py -->"
CHANGES: dict[str, tuple[float, ...]] = {
    "FLOOR": (1e-4, 0.1, 0.4, 1.0),
    "TURNED": (0.0, 0.1, 0.3),
    "TELLING": (0.005, 0.08),
    "RECOVER": (1.0, 1.02, 1.1),
}
SETTINGS: dict[str, tuple[float, ...]] = {"output_ridge": (0.0, 0.1)}


class Friedman(Cell):
    """``10 sin(pi x_1 x_2) + 20 (x_3 - 1/2)^2 + 10 x_4 + 5 x_5`` of ten uniform inputs, learnt by an MLP."""

    def make(self, data: Path | None) -> Task:
        """The task; it needs no data."""
        x = np.random.default_rng(0).random((20_000, 10))
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        build = partial(MLP, 10, 1, **self.options)
        return Task(self.task, *standardised(x, y), build, LeastSquares(), self.batch_size, self.steps)


CELLS = {
    "autoencoder": Cell("autoencoder, MNIST", "autoencoder", 160, 250, 1000, {}),
    "friedman": Friedman(
        "MLP 10-64-64-64-1, Friedman's function", "friedman", 600, 256, 4000,
        {"width": 64, "depth": 3, "activation": "relu"},
    ),
    **OTHERS,
}  # fmt: skip


def variants() -> dict[str, tuple[str, float]]:
    """The constant or setting and its value, of every row, by its name; the default comes first."""
    both = {**CHANGES, **SETTINGS}
    changed = {f"{name}={value:g}": (name, value) for name, values in both.items() for value in values}
    return {DEFAULT: ("FLOOR", damping.FLOOR), **changed}


def final_loss_of(cell: Cell, task: Task, change: tuple[str, float], seed: int) -> float:
    """Of one training with this constant in all rules that read it, or this setting."""
    name, value = change
    if name in SETTINGS:
        return final_loss(cell, task, {name: value}, seed)
    with patch.object(damping, name, value):
        return final_loss(cell, task, {}, seed)


def tables(kept: dict[str, Any]) -> str:
    """The page's table: a row for every value, a column for every model."""
    return table(kept, CELLS, variants(), "changed", "the default's loss")


def main() -> None:
    study(__doc__, CELLS, variants(), final_loss_of, tables, (BEGIN, END))


if __name__ == "__main__":
    main()
