"""What all pictures of a report share: themes, colours, axes, and PNG bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from lnb_bench.training.drawing import pyplot

OTHERS = ("#2563eb", "#059669", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#475569")
OURS = ("#ea580c", "#d97706")


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    name: str
    ink: str
    faint: str
    paper: str


THEMES = (Theme("light", "#1f2937", "#d1d5db", "#ffffff"), Theme("dark", "#e5e7eb", "#4b5563", "#171717"))


def subplots(theme: Theme, *grid: int, **settings: Any) -> tuple[Any, Any]:
    """A figure and its panels, as of ``pyplot.subplots``, on the theme's paper."""
    figure, panels = pyplot().subplots(*grid, layout="constrained", facecolor=theme.paper, **settings)
    return figure, panels


def dress(panel: Any, theme: Theme, x: str, y: str) -> None:
    """Label the axes and colour everything by the theme."""
    panel.set_facecolor(theme.paper)
    panel.set_xlabel(x, color=theme.ink, fontsize=9)
    panel.set_ylabel(y, color=theme.ink, fontsize=9)
    panel.tick_params(colors=theme.ink, labelsize=8, which="both")
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(theme.faint)
    panel.grid(axis="y", color=theme.faint, linewidth=0.5)


def png(figure: Any) -> bytes:
    """The picture; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    pyplot().close(figure)
    return buffer.getvalue()
