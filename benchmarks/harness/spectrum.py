"""Figure of the share of the variance in the top directions, before and after a filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.harness.figures import DPI, SIZE, THEMES, Plot, Theme, cut, png

DASHES = ((0, (4, 1.5)), (0, (1.2, 1.2)))  # after the filter; uniform spectrum


def spectrum_plot(curves: Mapping[str, tuple[np.ndarray, np.ndarray | None]], filtered: str) -> Plot:
    """Draw the share of the variance in the first directions over their number.

    Args:
        curves: Encoder name -> share (d,) of the variance in each principal direction, largest first, and the same (k,)
            after the filter, or None.
        filtered: Name of the filter.
    """
    images = {end: png(_draw(curves, filtered, theme), theme) for end, theme in THEMES.items()}
    caption = (
        f"Solid: the encoder's vectors; dashed: after {filtered}; dotted: a uniform spectrum. The further a curve "
        "is above the dotted line, the fewer directions separate the vectors."
    )
    return Plot("spectrum", "Share of the variance in the top directions", caption, images)


def _draw(curves: Mapping[str, tuple[np.ndarray, np.ndarray | None]], filtered: str, theme: Theme) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(theme.paper)
    for number, (name, (before, after)) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": theme.series[number % len(theme.series)], "linewidth": 1.6}
        for shares, line, label in ((before, "-", cut(name)), (after, DASHES[0], f"{cut(name)}, {filtered}")):
            if shares is not None:
                axes.plot(np.arange(1, len(shares) + 1), 100 * np.cumsum(shares), linestyle=line, label=label, **style)
    widest = max(len(before) for before, _ in curves.values())
    directions = np.arange(1, widest + 1)
    axes.plot(directions, 100 * directions / widest, linestyle=DASHES[1], color=theme.muted, label="even", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(1, widest)
    axes.set_ylim(0, 100)
    axes.set_xlabel("directions", color=theme.muted)
    axes.set_ylabel("share of the variance, per cent", color=theme.muted)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.muted, labelsize=SIZE, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    legend: dict[str, Any] = {"frameon": False, "labelcolor": theme.ink, "fontsize": SIZE, "handlelength": 3}
    axes.legend(loc="upper left", **legend)
    return figure
