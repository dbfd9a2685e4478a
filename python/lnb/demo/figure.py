"""The demo's picture: one small panel per task, curves labelled where they end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lnb.cli.errors import CommandError
from lnb.demo.comparison import Curve, Scene

COLOURS = {"LNB": "#c2410c", "LNB (paper)": "#d97706", "AdamW": "#1d4ed8"}
INK, FAINT = "#1f2937", "#9ca3af"
LABELS = {"accuracy": "test accuracy", "relative_error": "relative error"}


def check_writable(out: Path) -> None:
    """Require, before minutes are spent, that the picture ``out`` can be written.

    Raises:
        CommandError: its folder does not exist or is read-only, or its format is unknown.
    """
    formats = Figure().canvas.get_supported_filetypes()
    if out.suffix.lstrip(".").lower() not in formats:
        raise CommandError(f"{out}: not a picture format that matplotlib writes; use for example {out.stem}.png")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise CommandError(f"{out}: the folder {out.parent} does not exist or cannot be written; choose another --out")


def draw(out: Path, scenes: Sequence[Scene], curves: dict[str, list[Curve]]) -> None:
    """Write the picture ``out``: metric over optimizer steps, one panel per scene.

    Raises:
        CommandError: it cannot be written.
    """
    figure = Figure(figsize=(4.0 * len(scenes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(scenes))
    for panel, scene in zip(panels, scenes, strict=True):
        _draw_panel(panel, scene, curves[scene.title])
    try:
        figure.savefig(out, dpi=160, facecolor="white")
    except OSError as error:
        raise CommandError(f"{out}: cannot be written ({error.strerror or error})") from error


def _draw_panel(panel: Any, scene: Scene, curves: list[Curve]) -> None:
    logarithmic = not curves[0].higher_is_better
    for curve in curves:
        colour = COLOURS[curve.optimizer]
        panel.plot(curve.steps, curve.values, color=colour, linewidth=1.8)
    if logarithmic:
        panel.set_yscale("log")
    else:
        # The interesting part: how the last tenths are gained.
        panel.set_ylim(min(0.6, *(min(curve.values[-5:]) for curve in curves)), 1.0)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.axhline(scene.target, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    panel.annotate(
        "target",
        (1, scene.target),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        color=FAINT,
        fontsize=8,
        ha="right",
        va="top",
    )
    _label_ends(panel, curves)
    panel.set_title(scene.title, color=INK, fontsize=11, loc="left")
    panel.set_xlabel("optimizer steps", color=INK, fontsize=9)
    panel.set_ylabel(LABELS[curves[0].metric], color=INK, fontsize=9)
    panel.tick_params(colors=INK, labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e5e7eb", linewidth=0.6)


def _label_ends(panel: Any, curves: list[Curve]) -> None:
    """Name every curve at its right end, the better one above; labels keep a line's height from each other."""
    panel.figure.draw_without_rendering()
    ends = {curve.optimizer: panel.transData.transform((curve.steps[-1], curve.values[-1]))[1] for curve in curves}
    gap, floor = 11 * panel.figure.dpi / 72, -float("inf")
    for name in sorted(ends, key=lambda name: ends[name]):
        place = max(ends[name], floor + gap)
        floor = place
        steps = next(curve.steps[-1] for curve in curves if curve.optimizer == name)
        height = panel.transData.inverted().transform((0, place))[1]
        panel.annotate(
            name,
            (steps, height),
            xytext=(5, 0),
            textcoords="offset points",
            color=COLOURS[name],
            fontsize=9,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
