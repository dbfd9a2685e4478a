"""A Laplace posterior of the last layer: calibration by LNB's second moment beside that of laplace-torch's own factors.

    python bench/last_layer_study.py [--seeds 5] [--json bench/results/last_layer.json] [--page docs/moments.md]

The model of ``bench/moments_study.py`` is trained on 200 images of digits, so that it errs often enough to be judged. 300 other
images choose the prior, and the temperature; tables are of the remaining 1,297, as they are and turned by 20 degrees. "Own
factors" are those of the training data by laplace-torch's formulas, with bias and weight apart: a test compares them with the
package where it is installed. "Both moments" takes for the outputs' factor the one of LNB's output side, whose size is not
kept and is chosen on the held-out images, too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from moments_study import Results, build, run, table, train, transforms
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lnb
from lnb.moments import LastLayerPosterior, output_factor

BEGIN, END = "<!-- table of bench/last_layer_study.py -->", "<!-- end of table of bench/last_layer_study.py -->"
TRAINED, HELD_OUT, BINS = 200, 300, 15
PRIORS = tuple(10.0 ** (k / 2) for k in range(-6, 9))
SIZES = tuple(10.0**k for k in range(-3, 4))
TEMPERATURES = tuple(10.0 ** (k / 20) for k in range(-10, 21))


class Apart:
    """The posterior with the bias apart from the weight, as laplace-torch has it, of any factors.

    Args:
        inputs: ``A``, ``[d_in, d_in]``.
        factor: ``B``.
        prior: precision.
    """

    def __init__(self, inputs: Tensor, factor: Tensor, prior: float) -> None:
        self._outer, self._rows = torch.linalg.eigh(factor)
        self._inner, self._axes = torch.linalg.eigh(inputs)
        self._prior = prior

    def probabilities(self, features: Tensor, logits: Tensor) -> Tensor:
        inverse = 1 / (self._inner.clamp(min=0).unsqueeze(1) * self._outer.clamp(min=0) + self._prior)
        along = (features.double() @ self._axes).square() @ inverse + 1 / (self._outer.clamp(min=0) + self._prior)
        variance = along @ self._rows.square().mT
        return (logits.double() / (1 + math.pi / 8 * variance).sqrt()).softmax(1)


def calibration_error(p: Tensor, y: Tensor) -> float:
    """Expected calibration error over equal bins of the largest probability, in per cent."""
    confidence, found = p.max(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = [abs(float(((found == y).double() - confidence)[bins == i].sum())) for i in range(BINS)]
    return 100 * sum(gaps) / len(y)


def judged(p: Tensor, y: Tensor) -> dict[str, float]:
    likelihood = p.gather(1, y.unsqueeze(1)).clamp(min=1e-30).log()
    return {"negative log-likelihood": -float(likelihood.mean()), "calibration error": calibration_error(p, y)}


@torch.no_grad()
def seen(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the last layer, and its outputs."""
    features = model[:-1](x)
    return features, model[-1](features)


def output_moment(optimizer: lnb.LNB, model: nn.Sequential) -> Tensor:
    """The second moment of the last layer's output gradients, as LNB averaged it, in float64: of mean diagonal 1."""
    state = optimizer.state[model[-1].weight]
    (whole,) = state["output_moment"][0]  # one block of ten outputs
    return (whole / whole.diagonal().mean()).double()


def measure(seed: int, results: Results) -> None:
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(found.data, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]
    train_x, held_x, test_x = x.split([TRAINED, HELD_OUT, len(x) - TRAINED - HELD_OUT])
    train_y, held_y, test_y = y.split([TRAINED, HELD_OUT, len(x) - TRAINED - HELD_OUT])
    model = build(seed)
    optimizer = train(model, (train_x, train_y), seed)
    own, outputs = lnb.export_moments(optimizer)["4"], output_moment(optimizer, model)
    lnb.detach(model)
    features, logits = seen(model, train_x)
    square, factor = features.double().mT @ features.double() / TRAINED, output_factor(logits, TRAINED)
    elsewhere = output_factor(seen(model, held_x)[1], TRAINED)
    ways: dict[str, list[Any]] = {
        "Laplace, own factors": [Apart(square, factor, prior) for prior in PRIORS],
        "Laplace, LNB's state and own outputs": [LastLayerPosterior(own, factor, prior) for prior in PRIORS],
        "Laplace, LNB's state and held-out outputs": [LastLayerPosterior(own, elsewhere, prior) for prior in PRIORS],
        "Laplace, both moments of LNB's state": [
            LastLayerPosterior(own, size * outputs, prior) for prior in PRIORS for size in SIZES
        ],
    }
    held = seen(model, held_x)
    chosen = {
        way: min(candidates, key=lambda c: judged(c.probabilities(*held), held_y)["negative log-likelihood"])
        for way, candidates in ways.items()
    }
    temperature = min(TEMPERATURES, key=lambda t: float(F.cross_entropy(held[1] / t, held_y)))
    turned = torch.tensor(transforms(seed)["rotation 20"](test_x.view(-1, 8, 8).numpy()).reshape(-1, 64)).float()
    for name, inputs in (("as they are", test_x), ("turned", turned)):
        features, logits = seen(model, inputs)
        probabilities = {
            "softmax": logits.double().softmax(1),
            "softmax at a chosen temperature": (logits.double() / temperature).softmax(1),
            **{way: posterior.probabilities(features, logits) for way, posterior in chosen.items()},
        }
        for way, p in probabilities.items():
            entry = results.setdefault(f"{name}: {way}", {})
            for figure, value in judged(p, test_y).items():
                entry.setdefault(figure, []).append(value)


def tables(kept: dict[str, Any]) -> str:
    seeds = len(next(iter(kept["results"].values()))["calibration error"])
    title = f"Means and standard deviations of {seeds} seeds; torch {kept['torch']}, {kept['date']}."
    return "\n".join([title, "", *table("last layer", kept["results"], {"calibration error": 1})])


if __name__ == "__main__":
    run(__doc__, {"results": measure}, tables, BEGIN, END)
