"""Colours of all figures, for light and dark pages, and conversion to PNG.

The colours are the palette of Okabe and Ito, distinguishable with any colour vision; marker shapes repeat them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

DPI = 160
SIZE = 8.5  # of letters, in points
LONGEST = 36  # letters of a name
COLOURS = 128  # of an image


@dataclass(frozen=True)
class Theme:
    """The colours of a page."""

    paper: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]


THEMES = {
    "": Theme(
        "#ffffff", "#1c2024", "#60646c", "#e4e6ea",
        ("#0072b2", "#d55e00", "#1c2024", "#cc79a7", "#009e73", "#b8860b"),
    ),
    "-dark": Theme(
        "#17191c", "#e8eaed", "#a0a5ad", "#30343a",
        ("#56b4e9", "#e8743b", "#e8eaed", "#d998bd", "#2fbf94", "#e6b020"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: File name without its suffix.
        title: What it shows.
        caption: What is omitted, and how to read it.
        images: Suffix of the name -> PNG: "" for light pages, "-dark" for dark ones.
    """

    name: str
    title: str
    caption: str
    images: dict[str, bytes]


def cut(name: str) -> str:
    """Return a name, truncated to `LONGEST` characters."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def png(figure: Figure, theme: Theme) -> bytes:
    """Return the figure as a PNG of at most `COLOURS` colours, small enough to embed in a page."""
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", facecolor=theme.paper, bbox_inches="tight", pad_inches=0.12)
    colours = Image.open(file).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours.save(small, format="png", optimize=True)
    return small.getvalue()
