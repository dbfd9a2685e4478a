"""What second moments are good for, on the digits of scikit-learn: quantisation, merging and alarms for unusual inputs.

    python bench/moments_study.py [--seeds 5] [--json bench/results/moments.json] [--page docs/moments.md]

The model is an MLP 64-256-256-10 with ReLU, trained by the default ``lnb.LNB`` for 200 steps of 64 of the 1,297 training images,
unless said otherwise. Tables are of the 500 test images. LNB keeps moments of 256 inputs in two diagonal blocks of 128.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import lnb
from lnb.moments import DriftMonitor, Moments, quantize, regmean

BEGIN, END = "<!-- tables of bench/moments_study.py -->", "<!-- end of tables -->"
BITS = (2, 3, 4)
SHOWN = ("layer 0, LNB's state", "layer 4, LNB's state")
"""Columns of single layers that the table has; the JSON has all."""
Data = tuple[Tensor, Tensor]
Results = dict[str, dict[str, list[float]]]


def digits(seed: int) -> tuple[Data, Data]:
    """Training and test images ``[N, 64]`` in [0, 1], with their classes."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(found.data, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]
    return (x[:-500], y[:-500]), (x[-500:], y[-500:])


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def train(model: nn.Module, data: Data, seed: int, steps: int = 200, lr: float = 0.1, **settings: Any) -> lnb.LNB:
    """With a linear decay of the rate."""
    optimizer = lnb.LNB(model, lr=lr, **settings)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
        schedule.step()
    return optimizer


@torch.no_grad()
def judge(model: nn.Module, data: Data) -> tuple[float, float]:
    """Accuracy in per cent, and loss."""
    outputs = model(data[0])
    return 100 * float((outputs.argmax(1) == data[1]).float().mean()), float(F.cross_entropy(outputs, data[1]))


# -- quantisation -----------------------------------------------------------------------------------------------------


def quantisation(seed: int, results: Results) -> None:
    data, test = digits(seed)
    model = build(seed)
    optimizer = train(model, data, seed)
    ways: dict[str, Callable[[nn.Module, int], object]] = {
        "rounding": lambda m, bits: quantize(m, own, bits, method="nearest"),
        "GPTQ, 128 images": lambda m, bits: quantize(m, few, bits),
        "GPTQ, 512 images": lambda m, bits: quantize(m, more, bits),
        "GPTQ, LNB's state": lambda m, bits: quantize(m, own, bits),
    }
    own = lnb.export_moments(optimizer)
    few, more = (lnb.gather_moments(model, [data[0][:count]]) for count in (128, 512))
    whole = lnb.gather_moments(model, [data[0]])
    cut = lnb.gather_moments(model, [data[0]], block_size=144)
    ways["GPTQ, all images"] = lambda m, bits: quantize(m, whole, bits)
    ways["GPTQ, all images, LNB's blocks"] = lambda m, bits: quantize(m, cut, bits)
    full_model = build(seed)
    full = lnb.export_moments(train(full_model, data, seed, block_size=None))
    _keep(results, "not quantised", judge(model, test))
    for bits in BITS:
        for way, apply in ways.items():
            candidate = copy.deepcopy(model)
            apply(candidate, bits)
            _keep(results, f"{bits} bits: {way}", judge(candidate, test))
        for way, method in (("rounding", "nearest"), ("GPTQ, LNB's state", "gptq")):
            candidate = copy.deepcopy(full_model)
            quantize(candidate, full, bits, method=method)
            _keep(results, f"{bits} bits, trained with block_size=None: {way}", judge(candidate, test))


def _keep(results: Results, name: str, values: tuple[float, float]) -> None:
    entry = results.setdefault(name, {"accuracy": [], "loss": []})
    for key, value in zip(("accuracy", "loss"), values, strict=True):
        entry[key].append(value)


# -- merging ----------------------------------------------------------------------------------------------------------


def merging(seed: int, results: Results) -> None:
    """Two models from one start, each trained on a half: of the classes, or of the images."""
    data, test = digits(seed)
    for split in ("classes", "images"):
        for start in ("random", "common training"):
            first = build(seed)
            if start != "random":
                train(first, (data[0][:200], data[1][:200]), seed, steps=60)
            lnb.detach(first)
            one = data[1] < 5 if split == "classes" else torch.arange(len(data[1])) % 2 == 0
            models, own, gathered = [], [], []
            for i, part in enumerate((one, ~one)):
                model = copy.deepcopy(first)
                half = data[0][part], data[1][part]
                own.append(lnb.export_moments(train(model, half, seed + 100 * i)))
                gathered.append(lnb.gather_moments(model, [half[0]]))
                models.append(model)
            place = f"{split}, {start}"
            singles = [judge(model, test) for model in models]
            _keep(results, f"{place}: one model alone", max(singles))
            average = copy.deepcopy(first)
            states = [model.state_dict() for model in models]
            average.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
            _keep(results, f"{place}: average", judge(average, test))
            ways: dict[str, tuple[list[Moments], bool]] = {
                "RegMean, gathered": (gathered, False),
                "RegMean with biases, gathered": (gathered, True),
                "RegMean, LNB's states": (own, False),
            }
            for way, (moments, bias) in ways.items():
                merged = copy.deepcopy(first)
                merged.load_state_dict(regmean(models, moments, bias=bias))
                _keep(results, f"{place}: {way}", judge(merged, test))


# -- drift ------------------------------------------------------------------------------------------------------------


def transforms(seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Of images ``[N, 8, 8]`` in [0, 1]."""
    random = np.random.default_rng(seed)
    return {
        "noise 0.1": lambda x: x + random.normal(0, 0.1, x.shape),
        "noise 0.3": lambda x: x + random.normal(0, 0.3, x.shape),
        "rotation 20": lambda x: ndimage.rotate(x, 20, axes=(1, 2), reshape=False, order=1),
        "rotation 90": lambda x: np.rot90(x, axes=(1, 2)).copy(),
        "inversion": lambda x: 1 - x,
        "blur 0.7": lambda x: ndimage.gaussian_filter(x, (0, 0.7, 0.7)),
        "contrast 0.5": lambda x: 0.5 * x,
    }


def alarms(
    model: nn.Module, sources: dict[str, Moments], seen: Tensor, usual: Tensor, unusual: Tensor
) -> dict[str, float]:
    """Areas under the ROC curve of every score that may tell ``unusual`` inputs from ``usual`` ones.

    Args:
        model: a classifier.
        sources: moments of its layers, by where they are from.
        seen: the training inputs; "either side" is the distance of a score's logarithm from their median.
        usual, unusual: as many inputs each.
    """
    both, truth = torch.cat([usual, unusual]), np.r_[np.zeros(len(usual)), np.ones(len(unusual))]
    with torch.no_grad():
        confidence = model(both).softmax(1).amax(1)
    areas = {"max softmax": float(roc_auc_score(truth, -confidence.numpy()))}
    for source, moments in sources.items():
        with DriftMonitor(model, moments) as monitor:
            model(both)
            score, of_layers = monitor.score(), monitor.scores()
            monitor.reset()
            model(seen)
        middle = monitor.score().log().median()
        found = {"all layers": score, "either side": (score.log() - middle).abs()}
        found |= {f"layer {layer}": scores for layer, scores in of_layers.items()}
        areas |= {f"{name}, {source}": float(roc_auc_score(truth, scores)) for name, scores in found.items()}
    return areas


def drift(seed: int, results: Results) -> None:
    data, test = digits(seed)
    model = build(seed)
    own = lnb.export_moments(train(model, data, seed))
    sources = {"gathered": lnb.gather_moments(model, [data[0]]), "LNB's state": own}
    for name, transform in transforms(seed).items():
        moved = torch.tensor(transform(test[0].view(-1, 8, 8).numpy()).reshape(-1, 64), dtype=torch.float32)
        for column, area in alarms(model, sources, data[0], test[0], moved).items():
            results.setdefault(name, {}).setdefault(column, []).append(area)


# -- the page ---------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(title: str, results: Results, digits: dict[str, int]) -> list[str]:
    columns = [name for name in next(iter(results.values())) if not name.startswith("layer ") or name in SHOWN]
    lines = [f"| {title} | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name, entry in results.items():
        lines.append(f"| {name} | {' | '.join(spread(entry[c], digits.get(c, 3)) for c in columns)} |")
    return lines


def tables(kept: dict[str, Any]) -> str:
    seeds = len(next(iter(kept["quantisation"].values()))["accuracy"])
    numbers = {"accuracy": 1, "loss": 3}
    lines = [
        f"Means and standard deviations of {seeds} seeds (split, start and batches); torch {kept['torch']}, {kept['date']}.",
        "",
        *table("quantisation", kept["quantisation"], numbers),
        "",
        *table("merging (halves of, start): way", kept["merging"], numbers),
        "",
        *table("drift: area under the ROC curve", kept["drift"], {}),
    ]
    return "\n".join(lines)


def filled(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with ``text`` between its marks."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def run(
    description: str | None,
    parts: dict[str, Callable[[int, Results], None]],
    tables: Callable[[dict[str, Any]], str],
    begin: str = BEGIN,
    end: str = END,
) -> None:
    """The command of a study: measure every part with every seed, print the tables, and keep what was asked for.

    Args:
        description: of the command.
        parts: what adds a seed's results to those of its name.
        tables: of all that is kept.
        begin, end: the marks of a page between which the tables go.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to keep the results")
    parser.add_argument("--page", type=Path, help="a page with the marks between which the tables go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, Any] = {"date": date.today().isoformat(), "torch": torch.__version__}
    for name, measure in parts.items():
        kept[name] = {}
        for seed in range(arguments.seeds):
            measure(seed, kept[name])
    print(tables(kept))
    if arguments.json:
        arguments.json.write_text(json.dumps(kept) + "\n")
    if arguments.page:
        arguments.page.write_text(filled(arguments.page.read_text(), tables(kept), begin, end))


PARTS = {"quantisation": quantisation, "merging": merging, "drift": drift}


if __name__ == "__main__":
    run(__doc__, PARTS, tables)
