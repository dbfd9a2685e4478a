"""Pictures of families of tasks and of profiles, each for a light and a dark page."""

from __future__ import annotations

import itertools
import math

from lnb_bench.study.canvas import OTHERS, OURS, Theme, dress, png, subplots
from lnb_bench.study.findings import Family
from lnb_bench.study.profiles import PARTS, Profile
from lnb_bench.study.words import METRICS

PART_COLOURS = ("#93c5fd", "#2563eb", "#d97706", "#ea580c", "#059669")


def family(shown: Family, theme: Theme) -> bytes:
    """The measure of every optimizer on every task of a family, PNG; where a target was never reached there is no point."""
    figure, panel = subplots(theme, figsize=(5.2, 3.4))
    mine, others = itertools.cycle(OURS), itertools.cycle(OTHERS)
    places = range(len(shown.tasks))
    for optimizer, estimates in shown.rows.items():
        colour = next(mine if optimizer.startswith("lnb") else others)
        points = [(i, e) for i, e in zip(places, estimates, strict=True) if math.isfinite(e.median)]
        panel.plot(
            [i for i, _ in points], [e.median for _, e in points],
            color=colour, marker="o", markersize=4, linewidth=1.2, label=optimizer,
        )  # fmt: skip
    panel.set_xticks(places, shown.tasks, rotation=20)
    panel.set_xlim(-0.2, len(shown.tasks) - 0.8)
    if shown.measure != "final":
        panel.set_yscale("log")
    y = {
        "final": METRICS.get(shown.metric, shown.metric),
        "steps_to_target": "steps to target",
        "shortest_schedule": "shortest schedule, steps",
    }[shown.measure]
    dress(panel, theme, "", y)
    panel.legend(fontsize=8, frameon=False, labelcolor=theme.ink, ncols=2)
    return png(figure)


def profile(shown: Profile, theme: Theme) -> bytes:
    """The picture that suits the profile's kind, PNG."""
    return {"parts": _parts, "memory": _memory, "product": _product}[shown.kind](shown, theme)


def _parts(shown: Profile, theme: Theme) -> bytes:
    """Stacked bars of milliseconds, a panel per model."""
    count = len(shown.results)
    height = sum(1.0 + 0.32 * len(rows) for rows in shown.results.values())
    figure, panels = subplots(theme, count, 1, figsize=(5.2, height), squeeze=False)
    for panel, (model, rows) in zip(panels[:, 0], shown.results.items(), strict=True):
        labels = list(rows)[::-1]
        left = [0.0] * len(labels)
        for part, colour in zip(PARTS, PART_COLOURS, strict=True):
            widths = [rows[label][part] for label in labels]
            panel.barh(range(len(labels)), widths, left=left, color=colour, height=0.65, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        panel.set_yticks(range(len(labels)), labels)
        dress(panel, theme, f"{model}: ms per step", "")
        panel.grid(False)
    handles, names = panels[0, 0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return png(figure)


def _memory(shown: Profile, theme: Theme) -> bytes:
    """Peak against batch size, both logarithmic; dashed: checkpointed."""
    figure, panel = subplots(theme, figsize=(5.2, 3.8))
    names = list(dict.fromkeys(row["optimizer"] for row in shown.results))
    colours = dict(zip(names, (OTHERS[0], OURS[0], OTHERS[1], OURS[1], *OTHERS[2:]), strict=False))
    for row in shown.results:
        batches = [int(batch) for batch in row["peaks"]]
        panel.plot(
            batches, [peak / 1e6 for peak in row["peaks"].values()],
            color=colours[row["optimizer"]], marker="o", markersize=3, linewidth=1.3,
            linestyle="--" if row["checkpointed"] else "-",
            label=None if row["checkpointed"] else row["optimizer"],
        )  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    dress(panel, theme, "batch size (dashed: activation checkpointing)", "peak, MB")
    panel.legend(fontsize=8, frameon=False, labelcolor=theme.ink)
    return png(figure)


def _product(shown: Profile, theme: Theme) -> bytes:
    """Bars of the ratio to the layer's backward pass, grouped by layer."""
    layers = list(shown.results)[::-1]
    methods = list(shown.results[layers[0]])
    height = 1.2 + 0.1 * len(layers) * (len(methods) + 1)
    figure, panel = subplots(theme, figsize=(5.2, height))
    for number, (method, colour) in enumerate(zip(methods, (OURS[0], OURS[1], *OTHERS), strict=False)):
        drawn = [
            (place, row) for place, layer in enumerate(layers) if (row := shown.results[layer][method]) is not None
        ]
        offset = (len(methods) - 1) / 2 - number
        step = 0.8 / len(methods)
        panel.barh(
            [place + step * offset for place, _ in drawn], [row["ratio"] for _, row in drawn],
            color=colour, height=0.9 * step, label=method if drawn else f"{method}: not installed",
        )  # fmt: skip
    panel.axvline(1, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set_yticks(range(len(layers)), layers)
    dress(panel, theme, "time over the layer's backward pass", "")
    panel.grid(False)
    panel.legend(fontsize=8, frameon=False, labelcolor=theme.ink)
    return png(figure)
