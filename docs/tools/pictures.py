"""Draws the pictures of the site, each in a light and a dark form, from arithmetic and from committed data.

python docs/tools/pictures.py     # writes docs/pictures/
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"


class Ink(NamedTuple):
    """Colours that are legible on one ground; the first and second are told apart by the colour-blind too."""

    ground: str
    text: str
    faint: str
    first: str
    second: str


INKS = {
    "": Ink("#ffffff", "#202124", "#b8bcc2", "#00796b", "#d1480f"),
    "-dark": Ink("#1e2129", "#e3e5e8", "#5c6370", "#4db6ac", "#ff8a65"),
}


def metric(ink: Ink) -> Any:
    """A neuron with two inputs: descent in the space of weights, and in that of white inputs."""
    moment = np.array([[1.0, 0.8], [0.8, 1.0]]) + np.outer([2, 1], [2, 1])
    factor = np.linalg.cholesky(moment)
    start = np.array([-1.6, 1.9])
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.5))
    rate = 1.9 / np.linalg.eigvalsh(moment)[-1]  # nearly the largest that does not diverge
    descent = [start]
    for _ in range(8):
        descent.append(descent[-1] - rate * descent[-1] @ moment)
    path = np.array(descent)
    for axes, basis, title in ((left, np.eye(2), "weights"), (right, factor, "weights of white inputs")):
        here, origin = path @ basis, start @ basis
        size = 1.25 * max(abs(here).max(), abs(origin).max())
        grid = np.linspace(-size, size, 60)
        points = np.stack(np.meshgrid(grid, grid), -1) @ np.linalg.inv(basis)
        loss = np.einsum("xyi,ij,xyj->xy", points, moment, points)
        levels = np.geomspace(0.02, 1, 7) * float(loss.max()) * 0.5
        axes.contour(grid, grid, loss, levels=levels, colors=ink.faint, linewidths=0.8)
        axes.plot(*here.T, color=ink.second, marker="o", markersize=3, linewidth=1.4, label="gradient descent, 8 steps")
        axes.annotate("", (0, 0), origin, arrowprops={"arrowstyle": "-|>", "color": ink.first, "linewidth": 2})
        axes.plot([], [], color=ink.first, linewidth=2, label="h, one step")
        axes.plot(0, 0, marker="+", color=ink.text, markersize=9)
        axes.set(title=title, xticks=[], yticks=[], aspect="equal", xlim=(-size, size), ylim=(-size, size))
    left.legend(loc="lower right", fontsize=8, frameon=False, labelcolor=ink.text)
    return figure


def step_time(ink: Ink) -> Any:
    """Times of whole steps by preset, from ``bench/results/step_overhead.json``."""
    found = json.loads((ROOT / "bench" / "results" / "step_overhead.json").read_text())["results"]
    shown = {
        "fast": "default",
        "Muon": "Muon",
        "paper": "paper",
        "paper, matrix-free": "paper, matrix-free",
        "paper, autodiff": "paper, autodiff",
    }
    models = {"transformer": "transformer", "unet": "UNet", "mlp": "MLP"}
    figure, axes = plt.subplots(figsize=(7.6, 3.1))
    height = 0.26
    shades = (ink.first, ink.second, ink.faint)
    for number, (model, label) in enumerate(models.items()):
        places = [-i + (1 - number) * height for i in range(len(shown))]
        values = [found[model][name]["ratio"] for name in shown]
        axes.barh(places, values, height, color=shades[number], label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.06, place, f"{value:.2f}", va="center", fontsize=7, color=ink.text)
    axes.axvline(1, color=ink.text, linewidth=0.8, linestyle=":")
    axes.set_yticks([-i for i in range(len(shown))], list(shown.values()))
    axes.set_xlabel("time of a step / that of fused AdamW")
    axes.legend(fontsize=8, frameon=False, labelcolor=ink.text, loc="lower right")
    return figure


def refreshes(ink: Ink) -> Any:
    """Which of the first 40 steps gather second moments, of a small model and of one whose layers take turns."""
    steps, every, layers = 40, 10, 10

    def is_due(step: int, phase: int) -> bool:
        return step & (step - 1) == 0 if step < every else step % every == phase

    figure, axes = plt.subplots(figsize=(7.6, 2.6))
    for layer in range(layers):
        due = [step + 1 for step in range(steps) if is_due(step, layer)]
        axes.scatter(due, [layer + 1] * len(due), color=ink.first, s=14, marker="s")
    due = [step + 1 for step in range(steps) if is_due(step, 0)]
    axes.scatter(due, [-0.6] * len(due), color=ink.second, s=14, marker="s")
    axes.set_yticks([-0.6, 1, layers], ["small model", "large model, layer 1", f"layer {layers}"])
    axes.set(xlabel="step", xlim=(0, steps + 1), ylim=(-1.3, layers + 0.8))
    return figure


def proofs(ink: Ink) -> Any:
    """Which means look at which kind of kernel."""
    kinds = ["plain PyTorch", "CPU, C++", "CUDA, C++", "Triton"]
    means = {
        "float64, error at most 2x PyTorch's": "1111",
        "executed in the tests": "1111",
        "simulator, 3 orders of threads": "0010",
        "interpreter, orders of programs": "0001",
        "address and bounds checks": "0111",
        "races": "0101",
        "machine code held to budgets": "0011",
        "random calls": "1100",
        "timed on its device": "1100",
    }
    figure, axes = plt.subplots(figsize=(7.6, 3.3))
    for row, (name, marks) in enumerate(means.items()):
        axes.text(-0.6, -row, name, ha="right", va="center", fontsize=8.5, color=ink.text)
        for column, mark in enumerate(marks):
            colour, shape = (ink.first, "o") if mark == "1" else (ink.faint, "_")
            axes.scatter(column, -row, color=colour, marker=shape, s=70 if mark == "1" else 30)
    for column, kind in enumerate(kinds):
        axes.text(column, 0.8, kind, ha="center", fontsize=8.5, color=ink.text)
    axes.set(xlim=(-4.2, len(kinds) - 0.4), ylim=(-len(means) + 0.4, 1.3))
    axes.axis("off")
    return figure


def quantisation(ink: Ink) -> Any:
    """What 2, 3 and 4 bits leave of three models, from ``bench/results/gptq.json``."""
    cells = json.loads((ROOT / "bench" / "results" / "gptq.json").read_text())["cells"]
    titles = {"gpt": "GPT: loss", "vit": "ViT: accuracy in %", "unet": "UNet: pixel accuracy in %"}
    ways = {
        "rounding": (ink.second, "s", ":"),
        "GPTQ, 512 samples": (ink.text, "o", "--"),
        "GPTQ, LNB's state": (ink.first, "D", "-"),
    }
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.9))
    bits = np.array([2, 3, 4])
    for place, (cell, title) in zip(axes, titles.items(), strict=True):
        place.axhline(np.mean(cells[cell]["not quantised"]), color=ink.faint, linewidth=1)
        for shift, (way, (colour, marker, line)) in enumerate(ways.items()):
            found = np.array([cells[cell][f"{b} bits: {way}"] for b in bits])
            label = way if way == "rounding" else f"{way.replace('state', 'state, no data')}"
            place.errorbar(
                bits + 0.06 * (shift - 1), found.mean(1), found.std(1, ddof=1), color=colour, marker=marker, linestyle=line,
                markersize=4, linewidth=1.4, label=label,
            )  # fmt: skip
        place.set(title=title, xticks=bits, xlabel="bits")
    axes[0].legend(fontsize=7.5, frameon=False, labelcolor=ink.text)
    return figure


def adapters(ink: Ink) -> Any:
    """What LNB's adapters learn and leave, by their start and rate, from ``bench/results/adapters.json``."""
    found = json.loads((ROOT / "bench" / "results" / "adapters.json").read_text())["results"]
    starts = {"usual": ("usual start", ink.text, "o"), "ipm": ("CorDA, to learn", ink.second, "s")}
    starts["kpm"] = ("CorDA, to keep: LNB's state", ink.first, "D")
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.1), sharey=True)
    for place, change in zip(axes, ("inverted", "turned"), strict=True):
        for start, (label, colour, marker) in starts.items():
            rows = [found[f"{change}, LNB {rate}: {start}"] for rate in ("0.1", "0.3", "1")]
            new, old = (np.array([row[part] for row in rows]).mean(1) for part in ("accuracy", "upright"))
            place.plot(new, old, color=colour, marker=marker, markersize=5, linewidth=1, label=label)
            if start == "kpm":
                place.annotate("lr=0.1", (new[0], old[0]), (4, 4), textcoords="offset points", fontsize=7.5)
        place.set(title=f"{change} digits", xlabel="accuracy on them, %", ylim=(0, 100))
    axes[0].set_ylabel("left of that on upright digits, %")
    axes[0].legend(fontsize=7.5, frameon=False, labelcolor=ink.text, loc="upper right")
    return figure


DRAWN = (metric, step_time, refreshes, proofs, quantisation, adapters)
PICTURES: dict[str, Callable[[Ink], Any]] = {made.__name__: made for made in DRAWN}


def draw(folder: Path) -> None:
    """Write every picture; the same bytes with the same version of matplotlib."""
    folder.mkdir(exist_ok=True)
    for name, make in PICTURES.items():
        for suffix, ink in INKS.items():
            style = {
                "axes.edgecolor": ink.faint, "axes.labelcolor": ink.text, "text.color": ink.text, "axes.facecolor": ink.ground,
                "figure.facecolor": ink.ground, "xtick.color": ink.text, "ytick.color": ink.text, "axes.spines.top": False,
                "axes.spines.right": False, "axes.titlesize": 10, "font.size": 9, "svg.hashsalt": name, "svg.fonttype": "path",
                "figure.constrained_layout.use": True,
            }  # fmt: skip
            with matplotlib.rc_context(style):
                figure = make(ink)
                path = folder / f"{name}{suffix}.svg"
                figure.savefig(path, metadata={"Date": None, "Creator": "docs/tools/pictures.py"})
                plt.close(figure)
            # A line of the file may end in blanks, which no editor of ours leaves.
            path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


if __name__ == "__main__":
    draw(FOLDER)
