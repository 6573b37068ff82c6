"""Figures of a report: quality against cost, and by kind of task, each as PNG for light and dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.harness.costs import DENSE, HYBRID, SPARSE, TOKENS, WORDS, Cost, costs_of
from benchmarks.harness.figures import DPI, SIZE, THEMES, Plot, Theme, cut, png
from benchmarks.harness.labels import Style, place_labels
from benchmarks.harness.radar import radar_plot
from benchmarks.harness.score_records import ScoreRecord
from benchmarks.harness.table import PARTS, Scores, scores_of

BESIDE = 10  # maximum number of systems for panels side by side
MARKERS = {DENSE: "o", TOKENS: "s", WORDS: "D", SPARSE: "v", HYBRID: "^"}
SIZES = {SPARSE: 8.5, HYBRID: 8.5}  # triangles look smaller


@dataclass(frozen=True)
class Against:
    """The horizontal axis of a quality plot."""

    name: str
    title: str
    axis: str
    value: Callable[[Cost], float | None]
    note: str
    is_marked: bool = False  # each value has a tick


AXES = (
    Against(
        "quality-dimension", "Quality against dimension", "dimensions of a vector",
        lambda cost: cost.dim, "Token vectors: dimensions of each.", is_marked=True,
    ),
    Against(
        "quality-speed", "Quality against the cost of encoding", "tokens encoded per second",
        lambda cost: cost.tokens_per_s, "Further right is faster; compare only systems measured on the same machine.",
    ),
    Against(
        "quality-index", "Quality against the size of the index", "index bytes per document",
        lambda cost: cost.bytes_per_document,
        "Exact search: 4 bytes per dimension, 2 for token vectors; engines: size of the saved files per document.",
    ),
)  # fmt: skip


def plots_of(records: Sequence[ScoreRecord], baseline: str | None = None) -> list[Plot]:
    """Return the figures that ``records`` have values for.

    A system is drawn only if all tasks of the panel were measured: all tasks, and the search tasks alone if some
    systems, such as BM25, support no others.

    Args:
        records: Records of any systems and tasks.
        baseline: System that the radar always shows.
    """
    scores, costs = scores_of(records), costs_of(records)
    panels = panels_of(scores)
    plots = [plot for against in AXES if (plot := _quality_plot(panels, costs, against)) is not None]
    radar = radar_plot(scores, baseline)
    return [*plots, radar] if radar is not None else plots


def panels_of(scores: Scores) -> dict[str, dict[str, float]]:
    """Return by title the means in per cent of the systems that have all of its tasks."""
    everything = list(range(len(scores.tasks)))
    searched = [place for place, kind in enumerate(scores.types) if kind in PARTS[0]]
    panels: dict[str, dict[str, float]] = {}
    for title, columns in (("all tasks", everything), ("tasks that search", searched)):
        means = scores.values[:, columns].mean(axis=1) if columns else np.full(len(scores.systems), np.nan)
        whole = {name: float(mean) for name, mean in zip(scores.systems, means, strict=True) if not np.isnan(mean)}
        if whole and whole.keys() not in [panel.keys() for panel in panels.values()]:
            panels[f"{title} ({len(columns)})"] = whole
    return panels


def _quality_plot(panels: dict[str, dict[str, float]], costs: dict[str, Cost], against: Against) -> Plot | None:
    known = {name: value for name, cost in costs.items() if (value := against.value(cost)) is not None}
    drawn = {title: means for title, means in panels.items() if means.keys() & known.keys()}
    if not drawn:
        return None
    images = {end: png(_draw_quality(drawn, known, costs, against, theme), theme) for end, theme in THEMES.items()}
    shown = set().union(*drawn.values())
    lacking = [name for name in costs if name in shown and name not in known]
    incomplete = [name for name in costs if name not in shown]
    notes = [f"Mean of main scores in per cent. {against.note}"]
    if lacking:
        notes.append(f"Drawn as a line, without a value on this axis: {', '.join(lacking)}.")
    if incomplete:
        notes.append(f"Omitted, with missing tasks: {', '.join(incomplete)}.")
    return Plot(against.name, against.title, " ".join(notes), images)


def _draw_quality(
    panels: dict[str, dict[str, float]], known: dict[str, float], costs: dict[str, Cost], against: Against, theme: Theme
) -> Figure:
    stacked = len(set().union(*panels.values())) > BESIDE
    size = (9.6, 5.4 * len(panels) + 0.4) if stacked else (4.6 * len(panels) + 0.4, 4.5)
    figure = Figure(figsize=size, dpi=DPI, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    colours = dict(zip(MARKERS, theme.series, strict=False))
    kinds = {cost.kind for name, cost in costs.items() if name in known}
    grid = figure.subplots(*((len(panels), 1) if stacked else (1, len(panels))), squeeze=False).ravel()
    for axes, (title, means) in zip(grid, panels.items(), strict=True):
        shown = {name: (known[name], mean) for name, mean in means.items() if name in known}
        _prepare(axes, theme, title, [x for x, _ in shown.values()], list(means.values()), against)
        for name, (x, y) in shown.items():
            kind = costs[name].kind
            mark: dict[str, Any] = {"color": colours[kind], "markeredgecolor": theme.paper, "zorder": 3}
            axes.plot(x, y, MARKERS[kind], markersize=SIZES.get(kind, 6.5), **mark)
        for name, mean in means.items():
            if name not in known:
                axes.axhline(mean, color=colours[costs[name].kind], linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    for axes in grid if stacked else grid[:1]:
        axes.set_ylabel("mean score, per cent", color=theme.muted)
    if len(kinds) > 1:
        named = [kind for kind in MARKERS if kind in kinds]
        marks = [Line2D([], [], marker=MARKERS[kind], color=colours[kind], linestyle="") for kind in named]
        legend: dict[str, Any] = {"frameon": False, "labelcolor": theme.muted, "fontsize": SIZE, "handletextpad": 0.2}
        figure.legend(marks, named, loc="outside lower center", ncols=len(named), **legend)
    figure.draw_without_rendering()  # computes the layout, so that names are measured at their final position
    figure.set_layout_engine("none")
    for axes, means in zip(grid, panels.values(), strict=True):
        shown = {name: (known[name], mean) for name, mean in means.items() if name in known}
        lines = {name: (axes.get_xlim()[0], mean) for name, mean in means.items() if name not in known}
        points, names = np.array([*shown.values(), *lines.values()]), [cut(name) for name in (*shown, *lines)]
        style = Style(SIZE - 1, theme.ink, theme.muted, theme.paper)
        place_labels(axes, points, names, [mean for _, mean in lines.values()], style)
    return figure


def _prepare(axes: Axes, theme: Theme, title: str, xs: list[float], ys: list[float], against: Against) -> None:
    """Set the limits, ticks and colours of a panel; its x axis is logarithmic, with room for names."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, color=theme.ink, fontsize=SIZE + 1.5, loc="left")
    axes.set_xscale("log")
    wide = max(1.5 if axes.get_position().width > 0.5 else 2.2, (max(xs) / min(xs)) ** 0.3)
    axes.set_xlim(min(xs) / wide, max(xs) * wide)
    room = max(1.0, 0.14 * (max(ys) - min(ys)))
    axes.set_ylim(min(ys) - room, max(ys) + room)
    axes.set_xlabel(against.axis, color=theme.muted)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ticks = _apart(sorted(set(xs)), wide) if against.is_marked else _decades(*axes.get_xlim())
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=SIZE, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)


def _apart(values: list[float], wide: float) -> list[float]:
    """Return the values whose numbers do not touch on an axis that reaches a factor of ``wide`` beyond them."""
    least = (values[-1] / values[0] * wide**2) ** 0.045
    kept = [values[0]]
    for value in values:
        if value >= kept[-1] * least:
            kept.append(value)
    return kept


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two limits; the powers alone where that would be many."""
    powers = [10.0**power for power in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    steps = (1, 2, 5) if high / low < 200 else (1,)
    return [step * power for power in powers for step in steps if low <= step * power <= high]


def _short(value: float) -> str:
    """Return a number for a tick: 320, 1.5k, 20M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
