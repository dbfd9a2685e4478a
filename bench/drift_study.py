"""Alarms for unusual inputs on MNIST: distances by second moments beside the largest softmax.

    LNB_DATA=DIR python bench/drift_study.py [--seeds 5] [--json bench/results/drift.json] [--page docs/moments.md]

An MLP 784-256-256-10 with ReLU is trained by the default ``lnb.LNB`` for 300 steps of 64 of 10,000 training images. Usual inputs
are 2,000 test images, and unusual ones the same images after a transform. Four transforms make them look more like pictures of
clothes than of strokes: filled outlines, filled outlines with a texture, thick strokes, and quarters that changed places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from moments_study import Results, alarms, run, table, train
from scipy import ndimage
from torch import nn

import lnb
from lnb_bench.training.data.mnist import load_mnist

BEGIN, END = "<!-- table of bench/drift_study.py -->", "<!-- end of table of bench/drift_study.py -->"
TRAINED, TESTED, STEPS, SIDE = 10_000, 2_000, 300, 28


def filled_outline(images: np.ndarray) -> np.ndarray:
    """What a thick stroke surrounds is as bright as the stroke."""
    thick = ndimage.grey_dilation(images, (1, 3, 3))
    inside = np.stack([ndimage.binary_fill_holes(image > 0.3) for image in thick])
    return np.maximum(thick, 0.8 * inside)


def transforms(seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Of images ``[N, 28, 28]`` in [0, 1]."""
    random = np.random.default_rng(seed)
    stripes = 0.6 + 0.4 * np.sign(np.sin(np.arange(SIDE) * 2 * np.pi / 4))
    return {
        "filled": filled_outline,
        "filled, striped": lambda x: filled_outline(x) * stripes,
        "thick strokes": lambda x: ndimage.grey_dilation(x, (1, 5, 5)),
        "quarters exchanged": lambda x: np.roll(x, (SIDE // 2, SIDE // 2), (1, 2)),
        "noise 0.1": lambda x: x + random.normal(0, 0.1, x.shape),
        "noise 0.3": lambda x: x + random.normal(0, 0.3, x.shape),
        "rotation 20": lambda x: ndimage.rotate(x, 20, axes=(1, 2), reshape=False, order=1),
        "rotation 90": lambda x: np.rot90(x, axes=(1, 2)).copy(),
        "inversion": lambda x: 1 - x,
        "blur 1.5": lambda x: ndimage.gaussian_filter(x, (0, 1.5, 1.5)),
        "contrast 0.5": lambda x: 0.5 * x,
    }


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(SIDE**2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def measure(seed: int, results: Results) -> None:
    """One training, and the areas of every transform."""
    train_split, test_split = load_mnist()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train_split), generator=generator)[:TRAINED]
    kept = torch.randperm(len(test_split), generator=generator)[:TESTED]
    (x, y), (usual, _) = train_split.batch(chosen, torch.device("cpu")), test_split.batch(kept, torch.device("cpu"))
    x, images = x.flatten(1), usual.view(-1, SIDE, SIDE).numpy()
    model = build(seed)
    own = lnb.export_moments(train(model, (x, y), seed, STEPS))
    lnb.detach(model)
    sources = {"gathered": lnb.gather_moments(model, x.split(1000)), "LNB's state": own}
    for name, transform in transforms(seed).items():
        moved = torch.tensor(transform(images).reshape(TESTED, -1), dtype=torch.float32)
        for column, area in alarms(model, sources, x[:TESTED], usual.flatten(1), moved).items():
            results.setdefault(name, {}).setdefault(column, []).append(area)


def tables(kept: dict[str, Any]) -> str:
    seeds = len(next(iter(kept["results"].values()))["max softmax"])
    title = f"Means and standard deviations of {seeds} seeds; torch {kept['torch']}, {kept['date']}."
    return "\n".join([title, "", *table("MNIST: area under the ROC curve", kept["results"], {})])


if __name__ == "__main__":
    run(__doc__, {"results": measure}, tables, BEGIN, END)
