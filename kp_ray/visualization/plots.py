"""Plots as SVG that reads on a light and on a dark page."""

import io
import warnings
from collections.abc import Collection, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.visualization.colors import MIDDLE, SERIES
from kp_ray.visualization.skeletons import _sides

_GREY = "#808080"
_DASHES = ("-", "--", "-.", ":")  # curves that lie on each other, such as equal learning rates, all show
_SHADES = LinearSegmentedColormap.from_list("shades", [(0.23, 0.56, 0.83, 0.04), (0.23, 0.56, 0.83, 1.0)])
_BEST_TO_WORST = LinearSegmentedColormap.from_list("best_to_worst", ["#2a9d74", "#d9a520", "#c44e52"])
_WIDTH_IN = 4.1  # with 8 pt text: still readable on a phone
_MOST_NAMED = 8  # curves in a legend


def plot_curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    log_y: bool = False,
    stopped: Collection[str] = (),
) -> bytes:
    """Named curves (x, y) over each other, as SVG. Values that are not numbers break a curve.

    The ends of those in `stopped` are crossed; more than a handful get no legend.
    """
    figure, axes = _axes(_WIDTH_IN, 2.9, title, xlabel, ylabel)
    for index, (name, (x, y)) in enumerate(series.items()):
        marker = "o" if len(x) <= 30 else ""
        paint = SERIES[index % len(SERIES)]
        dashes = _DASHES[index % len(_DASHES)]
        xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        axes.plot(xs, ys, dashes, color=paint, marker=marker, markersize=3, linewidth=1.4, label=_plain(name))
        if name in stopped and len(xs):
            axes.plot(xs[-1:], ys[-1:], "x", color=paint, markersize=8, markeredgewidth=2)
    values = np.array([value for _, y in series.values() for value in y], dtype=float)
    if log_y and (values > 0).any():
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(LogFormatter())
    axes.grid(color=_GREY, alpha=0.22, linewidth=0.6)
    if 1 < len(series) <= _MOST_NAMED:
        axes.legend(frameon=False, labelcolor=_GREY, fontsize=8)
    return _svg(figure)


def plot_points(
    x: Sequence[float],
    y: Sequence[float],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    log_x: bool = False,
    best: int | None = None,
) -> bytes:
    """A scatter of y over x, as SVG; the point with index `best` is circled.

    Args:
        log_x: numbers over more than a decade get a log scale.
    """
    figure, axes = _axes(_WIDTH_IN, 2.9, title, xlabel, ylabel)
    axes.scatter(np.asarray(x, dtype=float), np.asarray(y, dtype=float), s=22, color=SERIES[0], alpha=0.8, linewidths=0)
    if best is not None:
        axes.scatter([x[best]], [y[best]], s=110, facecolors="none", edgecolors=SERIES[1], linewidths=2)
    if log_x and min(x, default=0) > 0 and max(x) > 10 * min(x):
        axes.set_xscale("log")
    axes.grid(color=_GREY, alpha=0.22, linewidth=0.6)
    return _svg(figure)


def plot_bars(
    labels: Sequence[str],
    values: Sequence[float | None],
    xlabel: str,
    title: str,
    intervals: Sequence[tuple[float, float] | None] | None = None,
) -> bytes:
    """Horizontal bars from the top down with their values written out, as SVG; None and NaN leave a dash.

    Args:
        intervals: (low, high) around each value, drawn as a whisker; None where there is none.
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    figure, axes = _axes(_WIDTH_IN, 0.75 + 0.19 * max(2, len(labels)), title, xlabel, "")
    places = np.arange(len(labels))
    axes.barh(places, np.nan_to_num(numbers), height=0.68, color=SERIES[0])
    for place, number, interval in zip(places, numbers, intervals or [None] * len(labels), strict=True):
        low, high = interval or (number, number)
        if interval:
            axes.plot([low, high], [place, place], color=SERIES[1], linewidth=1.6, marker="|", markersize=6)
        text = f"{number:#.3g}".rstrip(".") if np.isfinite(number) else "-"
        end = float(np.nan_to_num(max(number, high)))
        axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", color=_GREY, fontsize=7.5)
    _list_down(axes, labels)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    return _svg(figure)


def plot_ranges(labels: Sequence[str], samples: Sequence[FloatArray], xlabel: str, title: str) -> bytes:
    """How samples spread, from the top down, as SVG: a line from the 5th to the 95th percentile, a thick one over the
    middle half, a dot at the median. NaN is left out.

    Args:
        labels: n names.
        samples: n arrays of any length.
    """
    figure, axes = _axes(_WIDTH_IN, 0.75 + 0.19 * max(2, len(labels)), title, xlabel, "")
    for place, sample in enumerate(samples):
        known = sample[np.isfinite(sample)]
        if len(known):
            p5, p25, p50, p75, p95 = np.percentile(known, [5, 25, 50, 75, 95])
            axes.plot([p5, p95], [place, place], color=SERIES[0], linewidth=1.2)
            axes.plot([p25, p75], [place, place], color=SERIES[0], linewidth=4.5, solid_capstyle="butt")
            axes.plot([p50], [place], "o", color=SERIES[1], markersize=4)
    _list_down(axes, labels)
    axes.grid(axis="x", color=_GREY, alpha=0.22, linewidth=0.6)
    return _svg(figure)


def plot_shares(rows: Sequence[str], columns: Sequence[str], shares: FloatArray, title: str) -> bytes:
    """A table of shares in [0, 1] as shaded percentages, as SVG.

    Args:
        rows, columns: n and m names.
        shares: (n, m); NaN leaves a dash.
    """
    figure, axes = _axes(1.6 + 0.32 * len(columns), 1.0 + 0.19 * max(2, len(rows)), title, "", "")
    if shares.size:
        axes.pcolormesh(np.nan_to_num(shares), cmap=_SHADES, vmin=0, vmax=1, edgecolors="none", linewidth=0)
    for (row, column), share in np.ndenumerate(shares):
        text, paint = (f"{100 * share:.0f}", "white" if share > 0.6 else _GREY) if np.isfinite(share) else ("-", _GREY)
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=paint)
    _list_down(axes, rows, 0.5)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [_plain(name) for name in columns], rotation=50, ha="right")
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    return _svg(figure)


def plot_parallel(
    parameters: Mapping[str, Sequence[float | str | None]],
    values: Sequence[float | None],
    label: str,
    title: str,
    *,
    more_is_better: bool = False,
) -> bytes:
    """A line a trial over one upright axis a parameter, the result the last, as SVG; green is best, red worst.

    Args:
        parameters: name -> n values; text becomes classes, and numbers over more than a decade a log scale.
        values: n results; a trial without one is left out.
        label: names the result's axis.
    """
    done = [i for i, value in enumerate(values) if value is not None and np.isfinite(value)]
    columns = {**parameters, label: values}
    figure, axes = _axes(max(_WIDTH_IN, 1.15 * len(columns)), 2.9, title, "", "")
    heights = np.full((len(columns), len(done)), 0.5)
    for place, column in enumerate(columns.values()):
        heights[place], low, high = _heights([column[i] for i in done])
        axes.plot([place, place], [0, 1], color=_GREY, linewidth=0.8, alpha=0.6)
        for at, text, align in ((-0.03, low, "top"), (1.03, high, "bottom")):
            axes.text(place, at, _plain(text), ha="center", va=align, fontsize=7.5, color=_GREY)
    order = np.argsort([values[i] or 0.0 for i in done])[:: -1 if more_is_better else 1]
    for rank, trial in reversed(list(enumerate(order))):
        paint = _BEST_TO_WORST(rank / max(1, len(order) - 1))
        axes.plot(heights[:, trial], color=paint, linewidth=1.1 if rank else 2.6, alpha=0.75 if rank else 1)
    axes.set_xticks(np.arange(len(columns)), [_plain(name) for name in columns])
    axes.tick_params(axis="x", length=0, pad=12)
    axes.set(yticks=[], ylim=(-0.06, 1.1))
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _svg(figure)


def _heights(column: Sequence[float | str | None]) -> tuple[FloatArray, str, str]:
    """Values as heights in [0, 1] of an axis, and what stands at its lower and upper end."""
    if not all(isinstance(value, int | float) for value in column):
        names = sorted({str(value) for value in column})
        place = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
        return np.array([place[str(value)] for value in column]), names[0] if names else "", (names or [""])[-1]
    numbers = np.array(column, dtype=float)
    low, high = (numbers.min(), numbers.max()) if len(numbers) else (0.0, 0.0)
    ends = f"{low:.3g}", f"{high:.3g}"
    if low > 0 and high > 10 * low:
        numbers, low, high = np.log(numbers), np.log(low), np.log(high)
    return (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5), *ends


def plot_poses(groups: Mapping[str, FloatArray], skeleton: Skeleton, title: str) -> bytes:
    """Skeletons laid over each other, a panel a group, as SVG: what poses there are, and how many in each.

    Args:
        groups: name -> (N, K, 2) in any common unit, y downwards; NaN points and their limbs are left out.
        skeleton: gives the limbs and the sides.
    """
    figure, first = _axes(_WIDTH_IN, 2.9, title, "", "")
    first.remove()
    colors = [f"#{r:02x}{g:02x}{b:02x}" for b, g, r in _sides(skeleton)]
    middle = "#{2:02x}{1:02x}{0:02x}".format(*MIDDLE)
    ends = np.array(skeleton.limb_indices, dtype=int).reshape(-1, 2)
    paints = np.array([colors[a] if colors[a] != middle else colors[b] for a, b in ends])
    paints[paints == middle] = _GREY
    everything = np.concatenate([poses.reshape(-1, 2) for poses in groups.values()])
    low, high = np.nanpercentile(everything, [0.5, 99.5], axis=0) if np.isfinite(everything).any() else ([0, 0], [1, 1])
    for index, (name, poses) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), index + 1)
        lines = poses[:, ends].reshape(-1, 2, 2)
        whole = np.isfinite(lines).all(axis=(1, 2))
        alpha = float(np.clip(6 / max(1, len(poses)), 0.04, 0.6))
        # As dots inside the SVG: thousands of faint lines would make a file of megabytes.
        axes.add_collection(
            LineCollection(
                list(lines[whole]), colors=list(np.tile(paints, len(poses))[whole]), linewidths=1, alpha=alpha,
                rasterized=True,
            )
        )  # fmt: skip
        axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
        axes.set_xlabel(_plain(name), fontsize=8.5, color=_GREY)
        for spine in axes.spines.values():
            spine.set(color=_GREY, alpha=0.4)
    figure.suptitle(_plain(title), x=0.02, ha="left", fontsize=9.5, color=_GREY, fontweight="bold")
    return _svg(figure)


def _list_down(axes: Axes, labels: Sequence[str], shift: float = 0.0) -> None:
    """Names at rows 0, 1, ... from the top down."""
    axes.set_yticks(np.arange(len(labels)) + shift, [_plain(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4 + 0.8 * shift, -0.6 + 1.2 * shift)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _axes(width_in: float, height_in: float, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(_plain(title), loc="left", fontsize=9.5, color=_GREY, fontweight="bold")
    axes.set_xlabel(_plain(xlabel), fontsize=8.5, color=_GREY)
    axes.set_ylabel(_plain(ylabel), fontsize=8.5, color=_GREY)
    axes.tick_params(which="both", colors=_GREY, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_GREY)
    return figure, axes


def _plain(text: str) -> str:
    """A name as matplotlib text: no formulas, and no leading underscore, which would leave it out of a legend."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # Text stays text: the reader's fonts may know letters that matplotlib's do not. The salt: equal plots, equal bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kp_ray"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, format="svg", dpi=160, transparent=True, metadata={"Date": None})
    return stream.getvalue()
