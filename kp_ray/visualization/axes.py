"""Axes of SVG plots: text, lines and ticks are grey, so that they are readable on a light and on a dark page."""

import io
import warnings
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GREY = "#808080"
WIDTH_IN = 4.1
"""Usual width of a plot in inches; at this width, 8 pt text is readable on a phone."""


def make_axes(width_in: float, height_in: float, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Make a figure with one set of axes, which has no lines at the top and the right."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(escape_text(title), loc="left", fontsize=9.5, color=GREY, fontweight="bold")
    axes.set_xlabel(escape_text(xlabel), fontsize=8.5, color=GREY)
    axes.set_ylabel(escape_text(ylabel), fontsize=8.5, color=GREY)
    axes.tick_params(which="both", colors=GREY, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)
    return figure, axes


def label_rows(axes: Axes, labels: Sequence[str], shift: float = 0.0) -> None:
    """Label the rows of a plot; y grows downwards.

    Args:
        axes: axes of the plot.
        labels: one label per row, from the top down.
        shift: the centre of row i is at y = i + `shift`: 0 for bars, 0.5 for the cells of a table.
    """
    axes.set_yticks(np.arange(len(labels)) + shift, [escape_text(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4 + 0.8 * shift, -0.6 + 1.2 * shift)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def escape_text(text: str) -> str:
    """Escape text for matplotlib, where `$` starts a formula and a leading underscore hides a label in legends.

    Characters that cannot be printed are replaced, because an SVG may not hold them.
    """
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    escaped = printable.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def to_svg(figure: Figure) -> bytes:
    """Encode a figure as SVG with a transparent background; equal figures give equal bytes."""
    stream = io.BytesIO()
    # With "none" the SVG holds text, not outlines, because the viewer's fonts may have letters that matplotlib's lack.
    # The fixed salt makes the ids of elements reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kp_ray"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, format="svg", dpi=160, transparent=True, metadata={"Date": None})
    return stream.getvalue()
