"""Labels of the points of a plot, placed without overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke

DISTANCES = np.array([7, 12, 18, 26, 36, 48, 62, 80, 100, 125, 155, 190], dtype=float)  # points (1/72 inch) to a label
ANGLES = np.deg2rad([0, 180, 90, 270, 30, -30, 150, 210, 60, -60, 120, 240])  # to the right first
MARK = 5.0  # half the size of a mark, in points
PAD = 1.5  # margin around a label, in points
LEADER = 10  # distance in points from which a line leads to the label
CROSSED = 60.0  # cost of a line that crosses a label, a mark or a line, in points


@dataclass(frozen=True)
class Style:
    """Style of labels: font size in points; colours of text, leader lines and page."""

    size: float
    ink: str
    line: str
    paper: str


def place_labels(
    axes: Axes, points: np.ndarray, names: Sequence[str], levels: Sequence[float], style: Style
) -> np.ndarray:
    """Label each point, and return the boxes (N, 4) of the labels in pixels: left, bottom, right, top.

    A label gets the nearest position inside the axes that overlaps no label, mark or level; a thin line leads to a
    distant one. A label without such a position is omitted, its box is zero. The axis limits and the layout must be
    final.

    Args:
        axes: Axes of a figure with an Agg canvas.
        points: (N, 2) in data units.
        names: Labels of the points.
        levels: Heights of lines across the axes.
        style: Style of the labels.
    """
    canvas = getattr(axes.figure, "canvas", None)
    if not isinstance(canvas, FigureCanvasAgg):
        raise TypeError("labels need an Agg canvas")
    renderer, scale = canvas.get_renderer(), canvas.figure.dpi / 72
    frame = axes.get_window_extent(renderer).extents
    centres = axes.transData.transform(points)
    marks = np.column_stack([centres - MARK * scale, centres + MARK * scale])
    heights = [axes.transData.transform((points[0, 0], level))[1] for level in levels]
    bars = np.array([(frame[0], y - 2 * scale, frame[2], y + 2 * scale) for y in heights]).reshape(-1, 4)
    directions = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)])
    offsets = (DISTANCES[:, None, None] * directions * scale).reshape(-1, 2)
    sides = np.tile(np.sign(directions.round(3)), (len(DISTANCES), 1))
    costs = np.repeat(DISTANCES, len(ANGLES))
    placed, lines = np.zeros((len(points), 4)), np.empty((0, 4))
    for row in np.lexsort((points[:, 0], -points[:, 1])):
        text = axes.text(points[row, 0], points[row, 1], names[row], fontsize=style.size, color=style.ink, zorder=4)
        text.set_path_effects([withStroke(linewidth=2.5, foreground=style.paper)])
        extent = text.get_window_extent(renderer)
        half = np.array([extent.width, extent.height]) / 2 + PAD * scale
        middles = centres[row] + offsets + sides * half  # distance to the side that faces the point
        boxes = np.hstack([middles - half, middles + half])
        ends = np.clip(centres[row], boxes[:, :2], boxes[:, 2:])
        leads = np.hstack([np.broadcast_to(centres[row], ends.shape), ends])
        free = (boxes[:, :2] >= frame[:2]).all(axis=1) & (boxes[:, 2:] <= frame[2:]).all(axis=1)
        free &= ~_overlap(boxes, np.vstack([placed, marks, bars])).any(axis=1)
        if not free.any():
            text.remove()  # a missing label is better than two unreadable ones
            continue
        candidates = np.flatnonzero(free)
        leads, blocks = leads[candidates], np.vstack([placed, np.delete(marks, row, axis=0)])
        crossed = (
            _through(leads, blocks).sum(axis=1) + _through(lines, boxes[candidates]).sum(axis=0) + _meet(leads, lines)
        )
        chosen = int(np.argmin(costs[candidates] + CROSSED * crossed))
        best, lead = candidates[chosen], leads[chosen]
        placed[row] = boxes[best]
        text.set(horizontalalignment="center", verticalalignment="center")
        x, y = axes.transData.inverted().transform(middles[best])
        text.set_position((x, y))
        if np.hypot(*(lead[2:] - lead[:2])) > LEADER * scale:
            lines = np.vstack([lines, lead])
            ends = axes.transData.inverted().transform(lead.reshape(2, 2))
            axes.plot(ends[:, 0], ends[:, 1], color=style.line, linewidth=0.6, zorder=1.5)
    return placed


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (N, M) which boxes (N, 4) overlap which ``others`` (M, 4)."""
    first, second = boxes[:, None], others[None]
    shared = (first[..., :2] < second[..., 2:]) & (second[..., :2] < first[..., 2:])
    return np.all(shared, axis=2)


def _through(lines: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return (N, M) which line segments (N, 4) cross which boxes (M, 4), sampled at 16 points."""
    steps = np.linspace(0, 1, 16)[:, None, None]
    along = lines[None, :, :2] + steps * (lines[None, :, 2:] - lines[None, :, :2])  # (16, N, 2)
    inside = (along[:, :, None] > boxes[None, None, :, :2]) & (along[:, :, None] < boxes[None, None, :, 2:])
    crossed: np.ndarray = inside.all(axis=3).any(axis=0)
    return crossed


def _meet(lines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (N,) the number of ``others`` (M, 4) that each of ``lines`` (N, 4) crosses."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        sign: np.ndarray = np.sign((b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0])
        return sign

    a, b, c, d = lines[:, None, :2], lines[:, None, 2:], others[None, :, :2], others[None, :, 2:]
    crossed: np.ndarray = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    return crossed.sum(axis=1)
