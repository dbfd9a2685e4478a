"""What the default preset's training step asks of a GPU, at real widths, without one: launches, bytes, memory, simulated time.

    python bench/device_step.py                    # the table, beside the budgets
    python bench/device_step.py --case ViT-B/16 --operators
    python bench/device_step.py --json results/device_step.json

Forward, backward and step run on meta tensors, and what they call is counted (:mod:`meter.counting`): also every launch of
the project's own kernels. Times are arithmetic (:mod:`meter.timeline`): bytes and FLOPs over stated rates of an H100, 4
microseconds of host time for each launch, the host running ahead of the device. ``device_budgets.json`` has what must not be
exceeded; ``tests/bench/test_device_step.py`` enforces it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

import torch  # noqa: E402
from meter.measure import Steps, measure  # noqa: E402
from meter.models import CASES  # noqa: E402

BUDGETS = HERE / "device_budgets.json"
WITHOUT = ", without the CUDA module"
WITHOUT_MODULE = ("GPT-2 124M", "ResNet-50")
"""Cases that are also measured as they run on AMD's GPUs, or where the CUDA module was not built or finds its driver too old."""


def over_budget(name: str, figures: dict[str, float]) -> list[str]:
    """The figures of a case that exceed what ``device_budgets.json`` allows, in words."""
    budgets: dict[str, float] = json.loads(BUDGETS.read_text())[name]
    return [
        f"{name}: {key} is {figures[key]:.4g}, allowed are {most:.4g}"
        for key, most in budgets.items()
        if figures[key] > most
    ]


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures of the cases as a Markdown table, as docs/gpu.md has it."""
    rows = ["| | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    keys = next(iter(found.values()))
    rows += [f"| {key} | " + " | ".join(f"{figures[key]:.4g}" for figures in found.values()) + " |" for key in keys]
    return "\n".join(rows)


def _print(name: str, steps: Steps, operators: bool) -> None:
    budgets = json.loads(BUDGETS.read_text())[name]
    print(f"{name}: {steps.parameter_bytes / 4e6:.1f} million parameters")
    for key, value in steps.figures.items():
        print(f"  {key:50} {value:10.3f}   budget {budgets.get(key, float('nan')):.4g}")
    if operators:
        for part in ("ordinary", "refresh", "moments"):
            counts: Counter[str] = Counter()
            for launch in getattr(steps, part).launched:
                counts[launch.name] += launch.count
            print(f"  {part}: " + ", ".join(f"{operator} {count}" for operator, count in counts.most_common()))


def main() -> int:
    """Returns 1 where a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*CASES, *(case + WITHOUT for case in WITHOUT_MODULE)]
    parser.add_argument("--case", choices=names, action="append", help="one of the models; all by default")
    parser.add_argument("--float32", action="store_true", help="without bfloat16 autocast")
    parser.add_argument("--operators", action="store_true", help="list what is launched")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    found, exceeded = {}, []
    dtype = None if options.float32 else torch.bfloat16
    for name in options.case or names:
        case, without, _ = name.partition(WITHOUT)
        # Steps between two refreshes are alike: a short cycle has one of each, and here no time is budgeted.
        steps = (
            measure(CASES[case], dtype, cuda_module=False, refresh_every=4) if without else measure(CASES[case], dtype)
        )
        found[name] = steps.figures
        _print(name, steps, options.operators)
        exceeded += over_budget(name, steps.figures)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(*exceeded, sep="\n")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
