"""The means of systems by kind of task, as a radar."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.harness.figures import DPI, SIZE, THEMES, Plot, Theme, cut, png
from benchmarks.harness.table import Scores

SPOKES = 6  # systems at most: more cannot be told apart
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def radar_plot(scores: Scores, baseline: str | None) -> Plot | None:
    """Draw the means by kind of task of the best systems; it needs three kinds that some system has whole."""
    kinds, means = scores.means()
    whole = [row for row in range(len(means)) if not np.isnan(means[row]).any()]
    if len(kinds) < 3 or not whole:
        return None
    ranked = sorted(whole, key=lambda row: -means[row].mean())
    chosen = ranked[:SPOKES]
    own = [row for row in ranked if scores.systems[row] == baseline]
    if own and own[0] not in chosen:
        chosen = [*chosen[:-1], own[0]]
    images = {end: png(_draw_radar(scores, chosen, theme), theme) for end, theme in THEMES.items()}
    caption = "Mean main score of each kind of task in per cent, for systems that have all kinds"
    if len(chosen) < len(whole):
        caption += f": the best {len(chosen)} of {len(whole)}"
        caption += ", the baseline among them" if own else ""
    low = _rings(means[chosen])[0]
    caption += f". The middle is {low:.0f}, not zero." if low else "."
    return Plot("kinds", "Quality by kind of task", caption, images)


def _draw_radar(scores: Scores, chosen: list[int], theme: Theme) -> Figure:
    kinds, means = scores.means()
    values = means[chosen]
    figure = Figure(figsize=(7, 4.8), dpi=DPI, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.16, 0.1, 0.55, 0.8), projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(kinds), endpoint=False)
    low, high, ring = _rings(values)
    for place, row in enumerate(values):
        closed = np.append(row, row[0])
        colour = theme.series[place % len(theme.series)]
        name = cut(scores.systems[chosen[place]])
        axes.plot([*angles, angles[0]], closed, color=colour, linewidth=1.6, linestyle=DASHES[place], label=name)
        axes.plot(angles, row, "o", color=colour, markersize=3.5)
    axes.set_facecolor(theme.paper)
    polar: Any = axes
    polar.set_theta_offset(np.pi / 2)
    polar.set_theta_direction(-1)
    polar.set_rlabel_position(180 / len(kinds))
    axes.set_ylim(low, high)
    rings = np.arange(low + ring, high + 0.1, ring)
    axes.set_yticks(rings, [f"{level:.0f}" for level in rings], color=theme.muted, fontsize=SIZE - 1.5)
    axes.set_xticks(angles, [""] * len(angles))
    for angle, kind in zip(angles, kinds, strict=True):
        across, up = round(float(np.sin(angle)), 2), round(float(np.cos(angle)), 2)
        sides: dict[str, Any] = {"ha": "left" if across > 0 else "right" if across < 0 else "center"}
        sides["va"] = "bottom" if up > 0.5 else "top" if up < -0.5 else "center"
        axes.text(angle, high + 0.05 * (high - low), _spaced(kind), color=theme.ink, fontsize=SIZE, **sides)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.spines["polar"].set_color(theme.grid)
    legend: dict[str, Any] = {"frameon": False, "labelcolor": theme.ink, "fontsize": SIZE, "handlelength": 3}
    figure.legend(loc="center left", bbox_to_anchor=(0.8, 0.5), **legend)
    return figure


def _rings(values: np.ndarray) -> tuple[float, float, float]:
    """Return the values of the middle and of the outermost ring, and the step between rings."""
    ring = next((size for size in (2, 5, 10) if np.ptp(values) <= 4 * size), 20)
    low, high = ring * np.floor(values.min() / ring - 0.5), ring * np.ceil(values.max() / ring)
    return max(0.0, float(low)), min(100.0, float(high)), float(ring)


def _spaced(kind: str) -> str:
    return "Pair\nclassification" if kind == "PairClassification" else kind
