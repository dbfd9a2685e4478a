"""Writes the tables of pages that are made of committed data, between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.

python docs/tools/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.S)


def data(name: str) -> Any:
    """A file of ``bench/results``."""
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def made(found: dict[str, Any]) -> str:
    """When, and with which versions; data without one of lnb are of 0.1.0."""
    return f"\nlnb {found.get('lnb', '0.1.0')}, torch {found['torch']}, {found['date']}.\n"


def spread(row: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def step_overhead() -> str:
    """Times of whole steps, with the quartiles that were measured."""
    kept = data("step_overhead")
    found = kept["results"]
    models = ("transformer", "unet", "mlp")
    rows = [[name, *(spread(found[model][name]) for model in models)] for name in found["mlp"] if name != "AdamW fused"]
    return table(["", "transformer", "UNet", "MLP"], rows) + made(kept)


def step_overhead_default() -> str:
    """Times of whole steps of the default preset alone, on more models."""
    names = {
        "transformer": "2 blocks of 512, 16 x 512 tokens",
        "gpt": "language model, 4 blocks of 256, 8 x 256 tokens",
        "small-gpt": "language model, 2 blocks of 64, 16 x 64 tokens",
        "unet": "UNet, 16 base channels, 64 x 64 pixels, batch 8",
        "resnet20": "ResNet-20, 32 x 32 pixels, batch 64",
        "convnext": "3 depthwise blocks of 48 channels, 32 x 32 pixels, batch 16",
        "mlp": "784-800-10, batch 1000",
        "small-mlp": "64-64-64-10, batch 128",
    }
    kept = data("step_overhead_default")
    found = {model: kept["results"][model]["fast"] for model in names}
    rows = [[name, spread(found[model]), f"{found[model]['mean_ratio']:.2f}"] for model, name in names.items()]
    return table(["", "median, quartiles", "mean of a refresh cycle"], rows) + made(kept)


def time_to_target() -> str:
    """Times to AdamW's best value."""
    names = {
        "mnist-inverted": "inverted MNIST, MLP (accuracy)",
        "mnist": "MNIST, MLP (accuracy)",
        "camvid": "CamVid, UNet (pixel accuracy)",
        "cifar10": "CIFAR-10, small ViT (accuracy)",
        "shakespeare": "Shakespeare, small GPT (loss)",
    }
    kept = data("time_to_target")
    found = kept["results"]
    rows = []
    for task, name in names.items():
        optimizers = found[task]["optimizers"]
        rows.append([name, *(f"{optimizers[each]['ratio']:.2f}" for each in ("lnb", "muon"))])
    return table(["", "LNB", "Muon"], rows) + made(kept)


def peak_memory() -> str:
    """Peaks of every model and setting."""
    kept = data("peak_memory")
    rows = [
        [f"{model}, {name}", f"{row['peak'] / 1e6:.1f}", f"{row['over_planned']:.2f}"]
        for model, settings in kept["results"].items()
        for name, row in settings.items()
    ]
    return table(["", "peak, MB", "over AdamW's peak and the planned state"], rows) + made(kept)


def physics() -> str:
    """The equation of ``bench/physics.py``."""
    found = data("physics")
    rows = [
        [row["optimizer"], f"{row['lr']:g}", *(f"{value:.1e}" for value in (*row["residuals"].values(), row["error"]))]
        for row in found["rows"]
    ]
    head = ["optimizer", "lr", "residual after 20 steps", "100", "200", "largest error of the solution"]
    return table(head, rows) + f"\nOne seed, float64; torch {found['torch']}, {found['date']}.\n"


TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each for each in (step_overhead, step_overhead_default, time_to_target, peak_memory, physics)
}


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return TABLE.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def pages() -> list[Path]:
    """The pages that have such tables."""
    return [page for page in sorted(DOCS.rglob("*.md")) if TABLE.search(page.read_text())]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text()))
