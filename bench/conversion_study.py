"""What :func:`lnb.from_adamw` is worth: LNB with the converted settings beside the AdamW that they come from.

    python bench/conversion_study.py --data DIR [--seeds 3] [--json bench/results/conversion.json] [--page docs/move-over.md]

For every task and every weight decay, AdamW's rate is tuned on the first seed, and so is LNB's, with the product of rate and
decay kept; the other seeds are reported: AdamW at its best rate, LNB as converted, LNB at its best rate. The schedule is a
cosine. Results are kept after every run, and a study that was broken off goes on where it stood.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
from defaults_study import CELLS, final_loss
from gptq_study import arguments_of, begun, keep
from moments_study import filled

import lnb
import lnb_kernels

BEGIN, END = "<!-- table of bench/conversion_study.py -->", "<!-- end of table of bench/conversion_study.py -->"
DECAYS = (0.0, 0.1, 1.0)
ADAMW_RATES = (1e-3, 3e-3, 1e-2)
RATE_FACTORS = (0.5, 1.0, 2.0)  # of LNB's rate, with the product of rate and decay kept

Run = Callable[[str, dict[str, float], int], float]  # optimizer, settings, seed; the loss at the end


def scaled(settings: dict[str, float], factor: float) -> dict[str, float]:
    """``factor`` times the rate, with the same decay per step."""
    return {"lr": settings["lr"] * factor, "weight_decay": settings["weight_decay"] / factor}


def compare(decay: float, seeds: int, run: Run) -> dict[str, Any]:
    """One row of the table: both optimizers tuned on seed 0, and their losses on the others."""
    candidates = [{"lr": rate, "weight_decay": decay} for rate in ADAMW_RATES]
    adamw = min(candidates, key=lambda settings: run("adamw", settings, 0))
    converted = lnb.from_adamw(**adamw)
    tuned = min((scaled(converted, factor) for factor in RATE_FACTORS), key=lambda settings: run("lnb", settings, 0))
    rows = {"adamw": ("adamw", adamw), "converted": ("lnb", converted), "tuned": ("lnb", tuned)}
    return {
        "rates": {name: settings["lr"] for name, (_, settings) in rows.items()},
        "decays": {name: settings["weight_decay"] for name, (_, settings) in rows.items()},
        "losses": {
            name: [run(of, settings, seed) for seed in range(1, seeds)] for name, (of, settings) in rows.items()
        },
    }


def tables(kept: dict[str, Any]) -> str:
    """The page's table."""
    found = kept["rows"]
    seeds = min(len(row["losses"]["adamw"]) for rows in found.values() for row in rows.values())
    made = f"lnb {kept['lnb']}, torch {kept['torch']}, {kept['date']}"
    lines = [
        f"Test losses, means of {seeds} seeds that no rate was chosen by; {made}.",
        "",
        "| task | AdamW's best rate and decay | its loss | converted decay | LNB's loss | at LNB's best rate |",
        "| --- " * 6 + "|",
    ]
    for name, rows in found.items():
        for decay, row in rows.items():
            mean = {key: statistics.fmean(losses) for key, losses in row["losses"].items()}
            lines.append(
                f"| {CELLS[name].title} | {row['rates']['adamw']:g}, {decay} | {mean['adamw']:.3f} | "
                f"{row['decays']['converted']:.2g} | {mean['converted']:.3f} | "
                f"{mean['tuned']:.3f} at {row['rates']['tuned']:g} |"
            )
    return "\n".join(lines)


def main() -> None:
    arguments = arguments_of(__doc__, CELLS, seeds=3)
    made = {"date": date.today().isoformat(), "torch": torch.__version__, "lnb": lnb_kernels.__version__}
    kept = begun(arguments.json, {**made, "runs": {}, "rows": {}})
    for name in arguments.cells:
        cell, task = CELLS[name], CELLS[name].make(arguments.data)

        def run(optimizer: str, settings: dict[str, float], seed: int) -> float:
            key = f"{name}, {optimizer}, {settings['lr']:g}, {settings['weight_decay']:g}, {seed}"  # noqa: B023
            if key not in kept["runs"]:
                kept["runs"][key] = final_loss(cell, task, dict(settings), seed, optimizer)  # noqa: B023
                keep(arguments.json, kept)
            return float(kept["runs"][key])

        for decay in DECAYS:
            kept["rows"].setdefault(name, {})[f"{decay:g}"] = compare(decay, arguments.seeds, run)
            keep(arguments.json, kept)
    print(tables(kept))
    if arguments.page:
        arguments.page.write_text(filled(arguments.page.read_text(), tables(kept), BEGIN, END))


if __name__ == "__main__":
    main()
