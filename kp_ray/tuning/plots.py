"""Plots of a search."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kp_ray.config.schema import Config
from kp_ray.storage import write_bytes
from kp_ray.tuning.space import LOGARITHMIC
from kp_ray.tuning.trials import choose_best
from kp_ray.visualization.plots import plot_bars, plot_curves, plot_parallel, plot_points


def importance(params: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """How much of the ranks of n results each parameter explains alone, in [0, 1]; one that did not vary is left out.

    A number's share is the adjusted R^2 of a parabola through it (logarithm for `LOGARITHMIC`), a choice's that of its
    group means. Below five results all is 0: nothing can be said.
    """
    ranks = pd.Series(list(values), dtype=float).rank().to_numpy()
    shares = {}
    for name in params[0] if params else ():
        column = [point[name] for point in params]
        if len(set(column)) < 2:
            continue
        if isinstance(column[0], str | bool):
            fit = np.stack([np.array([value == other for value in column], float) for other in sorted(set(column))], 1)
        else:
            x = np.log(column) if name in LOGARITHMIC else np.array(column, dtype=float)
            x = (x - x.mean()) / x.std()
            fit = np.stack([np.ones_like(x), x, x**2], axis=1)
        free = len(ranks) - int(np.linalg.matrix_rank(fit))
        left = ranks - fit @ np.linalg.lstsq(fit, ranks, rcond=None)[0]
        whole = ranks.var() / (len(ranks) - 1) if len(ranks) > 1 else 0.0
        enough = len(ranks) >= 5 and free > 0 and whole > 0
        shares[name] = float(np.clip(1 - (left.var() / free) / whole, 0, 1)) if enough else 0.0
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def write_plots(config: Config, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write `tune/{learning_rate,curves,parallel,importance}.svg`; returns their paths."""
    metric = config.tune.metric
    done = [row for row in rows if row[metric] is not None]
    points, values = [json.loads(row["params"]) for row in done], [row[metric] for row in done]
    best = choose_best(rows, config.tune)
    curves = {}
    for row in rows:
        known = [(one["iteration"], one[metric]) for one in row["evaluations"] if one.get(metric) is not None]
        curves[row["trial"]] = ([iteration for iteration, _ in known], [value for _, value in known])
    cut = {row["trial"] for row in rows if row["status"] != "finished"}
    shares = importance(points, values)
    varied = {name: [_text(point[name]) for point in points] for name in shares}
    plots = {
        "learning_rate": plot_points(
            [row["base_lr"] for row in done], values, "base learning rate", metric,
            "Learning rate, the best trial circled", log_x=True,
            best=next((index for index, row in enumerate(done) if row is best), None),
        ),
        "curves": plot_curves(curves, "iteration", metric, "Trials, a cross where one was stopped", stopped=cut),
        "parallel": plot_parallel(
            varied, values, metric, "A line a trial, the best green", more_is_better=config.tune.mode == "max"
        ),
        "importance": plot_bars(
            list(shares), list(shares.values()), f"share of the order by {metric}",
            "What each parameter alone explains" if any(shares.values()) else "Too few trials to explain",
        ),
    }  # fmt: skip
    for name, content in plots.items():
        write_bytes(config.path("tune", f"{name}.svg"), content)
    return [config.path("tune", f"{name}.svg") for name in plots]


def _text(value: Any) -> float | str:
    return str(value) if isinstance(value, bool | str) else float(value)
