"""Plots for the report and the search, as SVG."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.visualization.axes import GREY, WIDTH_IN, escape_text, label_rows, make_axes, to_svg
from kp_ray.visualization.colors import MIDDLE, SERIES, limb_colors

_DASHES = ("-", "--", "-.", ":")  # two curves with equal values both stay visible, because their dashes differ
_SHADES = LinearSegmentedColormap.from_list("shades", ["#77828e", "#1d64b0"])  # white text is readable on all of them
_BEST_TO_WORST = LinearSegmentedColormap.from_list("best_to_worst", ["#2a9d74", "#d9a520", "#c44e52"])
_MAX_LEGEND = 8
"""Largest number of curves for which a plot has a legend."""


def plot_curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    log_y: bool = False,
    stopped_names: Collection[str] = (),
) -> bytes:
    """Plot named curves in one set of axes.

    Args:
        series: name -> x values and y values; a curve has a gap where a value is not finite.
        log_y: use a log scale for y if any value is positive.
        stopped_names: names of the curves whose last point is marked with a cross.
    """
    figure, axes = make_axes(WIDTH_IN, 2.9, title, xlabel, ylabel)
    for index, (name, (x, y)) in enumerate(series.items()):
        marker = "o" if len(x) <= 30 else ""
        color = SERIES[index % len(SERIES)]
        dashes = _DASHES[index % len(_DASHES)]
        xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        axes.plot(xs, ys, dashes, color=color, marker=marker, markersize=3, linewidth=1.4, label=escape_text(name))
        if name in stopped_names and len(xs):
            axes.plot(xs[-1:], ys[-1:], "x", color=color, markersize=8, markeredgewidth=2)
    values = np.array([value for _, y in series.values() for value in y], dtype=float)
    if log_y and (values > 0).any():
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(LogFormatter())
    axes.grid(color=GREY, alpha=0.22, linewidth=0.6)
    if 1 < len(series) <= _MAX_LEGEND:
        axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return to_svg(figure)


def plot_scatter(
    x: Sequence[float],
    y: Sequence[float],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    log_x: bool = False,
    best_index: int | None = None,
) -> bytes:
    """Plot y over x as points.

    Args:
        x, y: coordinates of the n points.
        log_x: use a log scale for x if its values span more than a decade.
        best_index: index of the point that is circled; None: circle no point.
    """
    figure, axes = make_axes(WIDTH_IN, 2.9, title, xlabel, ylabel)
    axes.scatter(np.asarray(x, dtype=float), np.asarray(y, dtype=float), s=22, color=SERIES[0], alpha=0.8, linewidths=0)
    if best_index is not None:
        axes.scatter([x[best_index]], [y[best_index]], s=110, facecolors="none", edgecolors=SERIES[1], linewidths=2)
    if log_x and min(x, default=0) > 0 and max(x) > 10 * min(x):
        axes.set_xscale("log")
    axes.grid(color=GREY, alpha=0.22, linewidth=0.6)
    return to_svg(figure)


def plot_bars(
    labels: Sequence[str],
    values: Sequence[float | None],
    xlabel: str,
    title: str,
    intervals: Sequence[tuple[float, float] | None] | None = None,
) -> bytes:
    """Plot horizontal bars from the top down, each with its value as text.

    Args:
        labels: names of the n bars.
        values: their lengths; None and NaN are shown as a dash.
        intervals: (low, high) of each bar, drawn as a line, or None for a bar without an interval; None in place of the
            sequence: no bar has an interval.
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    figure, axes = make_axes(WIDTH_IN, 0.75 + 0.19 * max(2, len(labels)), title, xlabel, "")
    rows = np.arange(len(labels))
    axes.barh(rows, np.nan_to_num(numbers), height=0.68, color=SERIES[0])
    for row, number, interval in zip(rows, numbers, intervals or [None] * len(labels), strict=True):
        low, high = interval or (number, number)
        if interval:
            axes.plot([low, high], [row, row], color=SERIES[1], linewidth=1.6, marker="|", markersize=6)
        text = f"{number:#.3g}".rstrip(".") if np.isfinite(number) else "-"
        end = float(np.nan_to_num(max(number, high)))
        axes.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center", color=GREY, fontsize=7.5)
    label_rows(axes, labels)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    return to_svg(figure)


def plot_distributions(labels: Sequence[str], samples: Sequence[FloatArray], xlabel: str, title: str) -> bytes:
    """Plot the distribution of each sample in a row of its own.

    A thin line spans the 5th to the 95th percentile, a thick line the 25th to the 75th; a dot marks the median.

    Args:
        labels: names of the n samples.
        samples: n arrays of any length; values that are not finite are ignored.
    """
    figure, axes = make_axes(WIDTH_IN, 0.75 + 0.19 * max(2, len(labels)), title, xlabel, "")
    for row, sample in enumerate(samples):
        finite_values = sample[np.isfinite(sample)]
        if len(finite_values):
            p5, p25, p50, p75, p95 = np.percentile(finite_values, [5, 25, 50, 75, 95])
            axes.plot([p5, p95], [row, row], color=SERIES[0], linewidth=1.2)
            axes.plot([p25, p75], [row, row], color=SERIES[0], linewidth=4.5, solid_capstyle="butt")
            axes.plot([p50], [row], "o", color=SERIES[1], markersize=4)
    label_rows(axes, labels)
    axes.grid(axis="x", color=GREY, alpha=0.22, linewidth=0.6)
    return to_svg(figure)


def plot_percentages(rows: Sequence[str], columns: Sequence[str], shares: FloatArray, title: str) -> bytes:
    """Plot a table of percentages; the color of a cell goes from grey (0 %) to blue (100 %).

    Args:
        rows: names of the n rows, from the top down.
        columns: names of the m columns.
        shares: (n, m) values in [0, 1]; NaN is shown as a dash.
    """
    figure, axes = make_axes(1.6 + 0.32 * len(columns), 1.0 + 0.19 * max(2, len(rows)), title, "", "")
    if shares.size:
        cells = np.ma.masked_invalid(shares)
        axes.pcolormesh(cells, cmap=_SHADES, vmin=0, vmax=1, edgecolors="none", linewidth=0)
    for (row, column), share in np.ndenumerate(shares):
        text, color = (f"{100 * share:.0f}", "white") if np.isfinite(share) else ("-", GREY)
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=color)
    label_rows(axes, rows, 0.5)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [escape_text(name) for name in columns], rotation=50, ha="right")
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    return to_svg(figure)


def plot_parallel_coordinates(
    parameters: Mapping[str, Sequence[float | str | None]],
    values: Sequence[float | None],
    label: str,
    title: str,
    *,
    more_is_better: bool = False,
) -> bytes:
    """Plot each trial as a line across parallel vertical axes, one per parameter and the last one for the result.

    The color of a line goes from green (best trial) to red (worst trial).

    Args:
        parameters: name -> values of n trials. An axis of texts is in alphabetical order; an axis of positive numbers
            that span more than a decade has a log scale.
        values: n results; a trial without a finite result is left out.
        label: name of the result's axis.
        more_is_better: True if the trial with the largest result is the best, False if the smallest.
    """
    finished_trials = [i for i, value in enumerate(values) if value is not None and np.isfinite(value)]
    columns = {**parameters, label: values}
    figure, axes = make_axes(max(WIDTH_IN, 1.15 * len(columns)), 2.9, title, "", "")
    heights = np.full((len(columns), len(finished_trials)), 0.5)
    for x, column in enumerate(columns.values()):
        heights[x], low, high = _heights([column[i] for i in finished_trials])
        axes.plot([x, x], [0, 1], color=GREY, linewidth=0.8, alpha=0.6)
        for height, text, align in ((-0.03, low, "top"), (1.03, high, "bottom")):
            axes.text(x, height, escape_text(text), ha="center", va=align, fontsize=7.5, color=GREY)
    order = np.argsort([values[i] or 0.0 for i in finished_trials])[:: -1 if more_is_better else 1]
    # The best trial is drawn last, over the lines of the others.
    for position, trial in reversed(list(enumerate(order))):
        color = _BEST_TO_WORST(position / max(1, len(order) - 1))
        axes.plot(heights[:, trial], color=color, linewidth=1.1 if position else 2.6, alpha=0.75 if position else 1)
    axes.set_xticks(np.arange(len(columns)), [escape_text(name) for name in columns])
    axes.tick_params(axis="x", length=0, pad=12)
    axes.set(yticks=[], ylim=(-0.06, 1.1))
    for spine in axes.spines.values():
        spine.set_visible(False)
    return to_svg(figure)


def _heights(column: Sequence[float | str | None]) -> tuple[FloatArray, str, str]:
    """Scale the n values of an axis to [0, 1]; return (n,) heights and the labels of the lower and the upper end."""
    if not column:
        return np.zeros(0), "", ""
    if not all(isinstance(value, int | float) for value in column):
        names = sorted({str(value) for value in column})
        height = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
        return np.array([height[str(value)] for value in column]), names[0], names[-1]
    numbers = np.array(column, dtype=float)
    low, high = numbers.min(), numbers.max()
    low_label, high_label = f"{low:.3g}", f"{high:.3g}"
    if low > 0 and high > 10 * low:
        numbers, low, high = np.log(numbers), np.log(low), np.log(high)
    heights = (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
    return heights, low_label, high_label


def plot_poses(groups: Mapping[str, FloatArray], skeleton: Skeleton, title: str) -> bytes:
    """Plot one panel per group, with the skeletons of the group drawn over each other.

    Args:
        groups: name -> (N, K, 2) x, y in any unit that all groups share, y downwards; a limb with a NaN end is left
            out.
        skeleton: the K keypoints with their limbs and flip pairs.
    """
    figure, default_axes = make_axes(WIDTH_IN, 2.9, title, "", "")
    default_axes.remove()
    ends = np.array(skeleton.limb_indices, dtype=int).reshape(-1, 2)
    # MIDDLE is nearly white, so middle limbs are grey on the page.
    hex_colors = np.array(
        [GREY if color == MIDDLE else "#{2:02x}{1:02x}{0:02x}".format(*color) for color in limb_colors(skeleton)]
    )
    points = np.concatenate([poses.reshape(-1, 2) for poses in groups.values()])
    low, high = np.nanpercentile(points, [0.5, 99.5], axis=0) if np.isfinite(points).any() else ([0, 0], [1, 1])
    for index, (name, poses) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), index + 1)
        limbs = poses[:, ends].reshape(-1, 2, 2)
        is_finite = np.isfinite(limbs).all(axis=(1, 2))
        alpha = float(np.clip(6 / max(1, len(poses)), 0.04, 0.6))
        colors = list(np.tile(hex_colors, len(poses))[is_finite])
        # Thousands of vector lines would make the SVG several megabytes large, so the limbs are rasterized.
        axes.add_collection(
            LineCollection(list(limbs[is_finite]), colors=colors, linewidths=1, alpha=alpha, rasterized=True)
        )
        axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
        axes.set_xlabel(escape_text(name), fontsize=8.5, color=GREY)
        for spine in axes.spines.values():
            spine.set(color=GREY, alpha=0.4)
    figure.suptitle(escape_text(title), x=0.02, ha="left", fontsize=9.5, color=GREY, fontweight="bold")
    return to_svg(figure)
