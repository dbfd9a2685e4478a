"""What blocks cost GPTQ where they are a twentieth of a layer's second moment: 3072 inputs, the pixels of CIFAR-10.

    LNB_DATA=DIR python bench/wide_layer_study.py [--seeds 5] [--json bench/results/wide_layer.json] [--page docs/moments.md]

An MLP 3072-256-10 with ReLU is trained by the default ``lnb.LNB`` for 200 steps of 64 of 10,000 training images. LNB keeps the
second moment of its inputs in 24 blocks of 128, and neighbouring pixels, which resemble each other, fall into several of
them. "Error" is ``E ||(W - Q) x||^2`` of the first layer by the whole moment of the 10,000 images, relative to ``E ||W x||^2``.
Accuracy is that on 2,000 test images.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from moments_study import Results, judge, run, table, train
from torch import Tensor, nn

import lnb
from lnb.moments import Moments, quantize
from lnb_bench.training.data.cifar10 import load_cifar10

BEGIN, END = "<!-- table of bench/wide_layer_study.py -->", "<!-- end of table of bench/wide_layer_study.py -->"
TRAINED, TESTED, STEPS, SAMPLES = 10_000, 2_000, 200, 512
BITS = (2, 3)


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 10))


def share(weight: Tensor, other: Tensor, square: Tensor) -> float:
    """``E ||(W - Q) x||^2 / E ||W x||^2``, in per cent."""
    moved = (weight - other).detach().double()
    return 100 * float((moved @ square * moved).sum() / (weight.detach().double() @ square * weight.detach()).sum())


def measure(seed: int, results: Results) -> None:
    """One training, quantised in every way."""
    train_split, test_split = load_cifar10()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train_split), generator=generator)[:TRAINED]
    kept = torch.randperm(len(test_split), generator=generator)[:TESTED]
    (x, y), (test_x, test_y) = (
        split.batch(rows, torch.device("cpu")) for split, rows in ((train_split, chosen), (test_split, kept))
    )
    x, test = x.flatten(1), (test_x.flatten(1), test_y)
    model = build(seed)
    own = lnb.export_moments(train(model, (x, y), seed, STEPS))
    lnb.detach(model)
    whole = lnb.gather_moments(model, x.split(1000))
    square = whole["0"].second_moment[0, 0].double()
    ways: dict[str, Moments] = {
        "rounding": own,
        f"GPTQ, {SAMPLES} images": lnb.gather_moments(model, [x[:SAMPLES]]),
        "GPTQ, all images": whole,
        "GPTQ, all images, LNB's blocks": lnb.gather_moments(model, x.split(1000), block_size=144),
        "GPTQ, LNB's state": own,
    }

    def note(row: str, candidate: nn.Sequential) -> None:
        entry = results.setdefault(row, {"accuracy": [], "error of the first layer, %": []})
        entry["accuracy"].append(judge(candidate, test)[0])
        entry["error of the first layer, %"].append(share(model[0].weight, candidate[0].weight, square))

    note("not quantised", model)
    for bits in BITS:
        for way, moments in ways.items():
            candidate = copy.deepcopy(model)
            quantize(candidate, moments, bits, method="nearest" if way == "rounding" else "gptq")
            note(f"{bits} bits: {way}", candidate)


def tables(kept: dict[str, Any]) -> str:
    seeds = len(kept["results"]["not quantised"]["accuracy"])
    title = f"Means and standard deviations of {seeds} seeds; torch {kept['torch']}, {kept['date']}."
    return "\n".join([title, "", *table("MLP 3072-256-10, CIFAR-10", kept["results"], {"accuracy": 1})])


if __name__ == "__main__":
    run(__doc__, {"results": measure}, tables, BEGIN, END)
