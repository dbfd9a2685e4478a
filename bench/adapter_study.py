"""Adapters that start as CorDA does, beside the usual start of LoRA: a model of digits learns inverted or turned digits.

    python bench/adapter_study.py [--seeds 5] [--json bench/results/adapters.json] [--page docs/moments.md]

The model of ``bench/moments_study.py`` is trained on upright digits and frozen. Adapters of all three layers then learn from
200 changed images, in the layout of PEFT's LoRA with ``lora_alpha = r = 4``, by LNB and by AdamW, 60 steps of 64. Accuracy is
that on 500 changed test images, and "upright" that on the same images as they were: what is left of the knowledge before.
The usual start has a random ``A``, as ``nn.Linear`` makes it, and ``B = 0`` (Hu et al., "LoRA", arXiv:2106.09685). "ipm" has
moments of the inputs to learn: ``gather_moments`` runs the model over the 200 images once. "kpm" has moments of the inputs to
spare: those that LNB's state has of the model's own training, without data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from moments_study import Results, build, digits, judge, run, spread, train
from torch import Tensor, nn

import lnb
from lnb.moments import LayerMoment, corda

BEGIN, END = "<!-- table of bench/adapter_study.py -->", "<!-- end of table of bench/adapter_study.py -->"
IMAGES, STEPS, RANK = 200, 60, 4
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda x: 1 - x,
    "turned": lambda x: x.view(-1, 8, 8).rot90(1, (1, 2)).flatten(1),
}
STARTS = ("usual", "ipm", "kpm")
RATES = {"LNB": (0.1, 0.3, 1.0), "AdamW": (0.01, 0.03, 0.1)}


class Adapted(nn.Module):
    """``base(x) + B A x``."""

    def __init__(self, layer: nn.Linear, moment: LayerMoment, start: str) -> None:
        super().__init__()
        self.base = copy.deepcopy(layer).requires_grad_(False)
        self.down, self.up = (
            nn.Linear(n, m, bias=False) for n, m in ((layer.in_features, RANK), (RANK, layer.out_features))
        )
        with torch.no_grad():
            if start == "usual":
                self.up.weight.zero_()
            else:
                found = corda(layer.weight, moment, RANK, method=start)
                for parameter, value in ((self.down, found.A), (self.up, found.B), (self.base, found.residual)):
                    parameter.weight.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def learn(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, seed: int) -> None:
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()


def measure(seed: int, results: Results) -> None:
    (x, y), (test_x, test_y) = digits(seed)
    base = build(seed)
    own = lnb.export_moments(train(base, (x, y), seed))
    lnb.detach(base)
    for change, apply in CHANGES.items():
        few = apply(x[:IMAGES])

        def note(row: str, model: nn.Module, apply: Callable[[Tensor], Tensor] = apply) -> None:
            entry = results.setdefault(row, {"accuracy": [], "upright": []})
            entry["accuracy"].append(judge(model, (apply(test_x), test_y))[0])
            entry["upright"].append(judge(model, (test_x, test_y))[0])

        note(f"{change}: not adapted", base)
        gathered = lnb.gather_moments(base, [few])
        for name, start, rate in ((n, s, r) for n, rates in RATES.items() for s in STARTS for r in rates):
            torch.manual_seed(seed)
            layers, moments = base.named_children(), own if start == "kpm" else gathered
            model = nn.Sequential(*(Adapted(m, moments[n], start) if n in moments else m for n, m in layers))
            moving = [p for p in model.parameters() if p.requires_grad]
            made = lnb.LNB(model, lr=rate) if name == "LNB" else torch.optim.AdamW(moving, lr=rate)
            learn(model, few, y[:IMAGES], made, seed)
            note(f"{change}, {name} {rate:g}: {start}", model)


def tables(kept: dict[str, Any]) -> str:
    """A row for every optimizer and rate, a column for every start: what was learnt, and what is left of the knowledge before."""
    results: Results = kept["results"]

    def cell(row: str) -> str:
        return " / ".join(spread(results[row][part], 1) for part in ("accuracy", "upright"))

    seeds = len(next(iter(results.values()))["accuracy"])
    made = f"torch {kept['torch']}, {kept['date']}"
    lines = [
        f"Accuracy on changed / on upright images, means and standard deviations of {seeds} seeds; {made}.",
        "",
        f"| adapters | {' | '.join(STARTS)} |",
        "| --- " * (len(STARTS) + 1) + "|",
    ]
    for change in CHANGES:
        lines.append(f"| {change}: not adapted | {cell(f'{change}: not adapted')} |" + " |" * (len(STARTS) - 1))
        for name, rate in ((name, rate) for name, rates in RATES.items() for rate in rates):
            place = f"{change}, {name} {rate:g}"
            lines.append(f"| {place} | {' | '.join(cell(f'{place}: {start}') for start in STARTS)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(__doc__, {"results": measure}, tables, BEGIN, END)
