"""The report's sections on training, tuning and speed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.reporting.formatting import (
    NUM_ROWS,
    dig,
    figure,
    format_number,
    parse_float,
    read_csv_table,
    read_optional_json,
    without_secrets,
)
from kp_ray.storage import exists, list_folders, read_bytes, read_text
from kp_ray.training.logs import LogEntry, read_training_log
from kp_ray.visualization.plots import plot_curves

_CURVE_POINTS = 1000


def training_section(config: Config) -> dict[str, Any] | None:
    """Curves of every member, over each other, from Detectron2's metrics.json."""
    ours = [member.name for member in config.train.members]
    folders = sorted(list_folders(config.path("members")), key=lambda name: (name not in ours, name))
    logs = {name: log for name in folders if (log := read_training_log(config.member_dir(name)))}
    if not logs:
        return None
    wanted = (
        ("total_loss", "total loss", "Training loss", True),
        ("lr", "learning rate", "Learning rate", False),
        ("val/rmse", "RMSE (px)", "Validation RMSE", False),
        ("val/pck_0.05", "PCK@0.05", "Validation PCK@0.05", False),
    )
    figures = []
    for key, ylabel, title, log_y in wanted:
        series = {name: curve for name, log in logs.items() if (curve := _curve(log, key))[0]}
        if series:
            svg = plot_curves(series, "iteration", ylabel, title, log_y)
            figures.append(figure(svg, f"{title} over the iterations, by member"))
    members = []
    for name, log in logs.items():
        losses = [entry.values["total_loss"] for entry in log if "total_loss" in entry.values]
        evaluated = [(entry.evaluation.get("rmse", math.nan), entry.iteration + 1) for entry in log]
        best, at = min((pair for pair in evaluated if math.isfinite(pair[0])), default=(None, None))
        members.append((name, log[-1].iteration + 1, losses[-1] if losses else None, best, at))
    return {"figures": figures, "members": members}


def _curve(log: Sequence[LogEntry], key: str) -> tuple[list[float], list[float]]:
    points = [(entry.iteration, entry.values[key]) for entry in log if key in entry.values]
    points = points[:: -(-len(points) // _CURVE_POINTS)] + points[-1:] if len(points) > _CURVE_POINTS else points
    return [float(x) for x, _ in points], [y for _, y in points]


def tuning_section(config: Config) -> dict[str, Any] | None:
    """The trials, the best of those that went farthest first, and the plots that lie beside them."""
    table = read_csv_table(config.path("tune", "trials.csv"))
    best_yaml = read_text(config.path("tune", "best.yaml"))
    if table is None and best_yaml is None:
        return None
    columns, rows = table or ([], [])
    metric = config.tune.metric if config.tune.metric in columns else None
    sign = 1 if config.tune.mode == "min" else -1

    def rank(row: Mapping[str, str]) -> tuple[bool, float, float]:
        value = parse_float(row.get(metric or ""))
        return value is None, -(parse_float(row.get("iterations")) or 0), sign * (value or 0)

    plots = {
        "learning_rate": "The metric of each trial over its base learning rate",
        "curves": "The metric of each trial over its iterations",
        "parallel": "Every trial's parameters and result",
        "importance": "How much each parameter explains",
    }
    files = {name: config.path("tune", f"{name}.svg") for name in plots}
    figures = {name: figure(read_bytes(path), plots[name]) for name, path in files.items() if exists(path)}
    return {
        "columns": columns, "rows": sorted(rows, key=rank)[:NUM_ROWS], "num_trials": len(rows), "metric": metric,
        "parallel": figures.pop("parallel", None), "figures": [*figures.values()],
        "best_yaml": best_yaml and without_secrets(best_yaml),
    }  # fmt: skip


def speeds_section(config: Config) -> list[tuple[str, str]]:
    """(stage, what it took), of the stages that recorded it."""
    told = []
    augment = read_optional_json(config.path("augment.json")) or {}
    seconds, start_up = dig(augment, "seconds"), dig(augment, "start_up_s") or 0.0
    if seconds is not None and (augment.get("parts_written") or "parts_written" not in augment):
        rate = dig(augment, "sources_per_s")
        text = (
            f"{format_number(seconds)} s, {format_number(start_up)} s of it start-up: {format_number(rate)} sources/s"
        )
        told.append(("augment", text))
    for name in list_folders(config.path("members")):
        log = read_training_log(config.member_dir(name))
        pace = [entry.values["time"] for entry in log if math.isfinite(entry.values.get("time", math.nan))]
        if pace:
            middle = float(np.median(pace))
            total = middle * (log[-1].iteration + 1)
            told.append((f"train {name}", f"{format_number(middle)} s an iteration, {format_number(total)} s"))
    _, rows = read_csv_table(config.path("tune", "trials.csv")) or ([], [])
    spent = [value for row in rows if (value := parse_float(row.get("seconds"))) is not None]
    steps = sum(parse_float(row.get("trained")) or 0 for row in rows)
    if spent and sum(spent):
        told.append(
            ("tune", f"{format_number(sum(spent))} s over {len(rows)} trials, {format_number(int(steps))} iterations")
        )
    predicted = read_optional_json(config.path("predict.json")) or {}
    seconds = dig(predicted, "took.seconds")
    if seconds:
        rate = (dig(predicted, "took.predicted") or 0) / seconds
        told.append(("predict", f"{format_number(seconds)} s: {format_number(rate)} images/s"))
    return told
