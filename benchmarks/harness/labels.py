"""Names beside the points of a plot, where none covers another or a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke

DISTANCES = np.array([7, 12, 18, 26, 36, 48, 62, 80, 100, 125, 155, 190], dtype=float)  # points (1/72 inch) to a name
ANGLES = np.deg2rad([0, 180, 90, 270, 30, -30, 150, 210, 60, -60, 120, 240])  # to the right first
MARK = 5.0  # points that a mark reaches from its middle
PAD = 1.5  # points around a name that stay free
LEADER = 10  # points from which on a line leads to the name
CROSSED = 60.0  # what a line through a name, a mark or another line costs, in points of distance


@dataclass(frozen=True)
class Style:
    """How names are written: the size of letters in points, the colours of names, of lines to them, of the page."""

    size: float
    ink: str
    line: str
    paper: str


def place_labels(
    axes: Axes, points: np.ndarray, names: Sequence[str], levels: Sequence[float], style: Style
) -> np.ndarray:
    """Write each point's name beside it, and return the boxes (N, 4) of the names in pixels: left, bottom, right, top.

    The nearest place counts where the name covers no other one, no mark and no level, and stays inside the axes; a thin
    line leads to a name that is far from its point. A name without any such place is left out, its box is zero. The
    limits of the axes must be final, and the figure laid out.

    Args:
        axes: On a figure with an Agg canvas.
        points: (N, 2) in the data's units.
        names: Of the points.
        levels: Heights of lines across the axes.
        style: Of the names.
    """
    canvas = getattr(axes.figure, "canvas", None)
    if not isinstance(canvas, FigureCanvasAgg):
        raise TypeError("names are measured on an Agg canvas")
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
        middles = centres[row] + offsets + sides * half  # the side of the name that faces the point is that far away
        boxes = np.hstack([middles - half, middles + half])
        ends = np.clip(centres[row], boxes[:, :2], boxes[:, 2:])
        leads = np.hstack([np.broadcast_to(centres[row], ends.shape), ends])
        free = (boxes[:, :2] >= frame[:2]).all(axis=1) & (boxes[:, 2:] <= frame[2:]).all(axis=1)
        free &= ~_overlap(boxes, np.vstack([placed, marks, bars])).any(axis=1)
        if not free.any():
            text.remove()  # a name less is better than two that cannot be read
            continue
        places = np.flatnonzero(free)
        leads, blocks = leads[places], np.vstack([placed, np.delete(marks, row, axis=0)])
        crossed = _through(leads, blocks).sum(axis=1) + _through(lines, boxes[places]).sum(axis=0) + _meet(leads, lines)
        chosen = int(np.argmin(costs[places] + CROSSED * crossed))
        best, lead = places[chosen], leads[chosen]
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
    """Return (N, M) which of two sets of boxes (N, 4) and (M, 4) share a place."""
    one, two = boxes[:, None], others[None]
    shared = (one[..., :2] < two[..., 2:]) & (two[..., :2] < one[..., 2:])
    return np.all(shared, axis=2)


def _through(lines: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return (N, M) which lines (N, 4) from one point to another go through which boxes (M, 4); looked at in steps."""
    steps = np.linspace(0, 1, 16)[:, None, None]
    along = lines[None, :, :2] + steps * (lines[None, :, 2:] - lines[None, :, :2])  # (16, N, 2)
    inside = (along[:, :, None] > boxes[None, None, :, :2]) & (along[:, :, None] < boxes[None, None, :, 2:])
    found: np.ndarray = inside.all(axis=3).any(axis=0)
    return found


def _meet(lines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (N,) with how many of ``others`` (M, 4) each of ``lines`` (N, 4) crosses."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.sign((b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0])
        return found

    a, b, c, d = lines[:, None, :2], lines[:, None, 2:], others[None, :, :2], others[None, :, 2:]
    crossed: np.ndarray = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    return crossed.sum(axis=1)
