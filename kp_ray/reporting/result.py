"""The report's section on accuracy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kp_ray.keypoints import FloatArray
from kp_ray.metrics import oks, pck, point_errors
from kp_ray.reporting.formatting import dig, figure
from kp_ray.reporting.predictions import Answers
from kp_ray.visualization.plots import plot_bars, plot_curves

_METRICS = (  # key, label, format, whether more is better
    ("rmse", "RMSE (px)", ".2f", False),
    ("median_px", "median (px)", ".2f", False),
    ("p95_px", "p95 (px)", ".2f", False),
    ("pck.0.05", "PCK@0.05", ".3f", True),
    ("pck.0.1", "PCK@0.1", ".3f", True),
    ("ap", "AP", ".3f", True),
    ("num_missing", "missing", ",.0f", False),
)


def result_section(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of the ensemble and its members; the best of a column is marked where the rows differ.

    A cell is its text, whether it is the best, and the interval it lies in with 95 % confidence, if that is known.
    """
    scored = {"ensemble": evaluation, **(evaluation.get("members") or {})}
    table = {
        key: {name: value for name, row in scored.items() if (value := dig(row, key)) is not None}
        for key, *_ in _METRICS
    }
    columns = [column for column in _METRICS if table[column[0]]]
    if not columns:
        return None
    rows: dict[str, list[tuple[str, bool, str]]] = {name: [] for name in scored}
    for key, _, form, more in columns:
        texts = {name: format(value, form) for name, value in table[key].items()}
        best = texts[(max if more else min)(table[key], key=table[key].__getitem__)]
        marked = len(set(texts.values())) > 1
        for name, cells in rows.items():
            between = _interval(scored[name], key)
            range_text = f"{between[0]:{form}} to {between[1]:{form}}" if between else ""
            cells.append((texts.get(name, "-"), marked and texts.get(name) == best, range_text))
    return {
        "labels": [label for _, label, *_ in columns],
        "rows": rows,
        "num_images": evaluation.get("num_images"),
        "has_intervals": any(between for cells in rows.values() for *_, between in cells),
    }


def error_figures(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Bars by keypoint and by camera."""
    figures = []
    for key, what in (("by_keypoint", "keypoint"), ("by_camera", "camera")):
        rows = evaluation.get(key) or {}
        if rows:
            labels = [name if key == "by_keypoint" else f"camera {name or 'unknown'}" for name in rows]
            values = [dig(row, "rmse") for row in rows.values()]
            intervals = [_interval(row, "rmse") for row in rows.values()]
            svg = plot_bars(labels, values, "RMSE (px)", f"Error by {what}", intervals)
            figures.append(figure(svg, f"RMSE of each {what}, in pixels"))
    return figures


def _interval(row: Mapping[str, Any] | None, key: str) -> tuple[float, float] | None:
    """The (low, high) of a figure, if the evaluation has one."""
    pair = (row or {}).get(f"{key}_interval") or ()
    numbers = [value for value in pair if isinstance(value, int | float) and math.isfinite(value)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def success_curves(answers: "Answers") -> list[dict[str, str]]:
    """How many points and people are right, over how strictly one asks: of each member and of the submission."""
    truth = answers.truth
    if truth is None:
        return []
    place = {image: row for row, image in enumerate(truth.images)}
    given: dict[str, tuple[Sequence[str], FloatArray]] = {}
    given |= {name: (answers.images, points) for name, points in zip(answers.members, answers.keypoints, strict=True)}
    if answers.fused is not None and answers.fused.skeleton.names == truth.skeleton.names:
        given["ensemble"] = (answers.fused.images, answers.fused.keypoints)
    shares, limits = np.linspace(0, 0.2, 41), np.linspace(0.5, 1, 51)
    by_pck, by_oks = {}, {}
    for name, (images, keypoints) in given.items():
        known = [row for row, image in enumerate(images) if image in place]
        labels = truth.keypoints[[place[images[row]] for row in known]]
        people = np.asarray(np.isfinite(labels[..., 0]).any(axis=1))
        if keypoints.shape[1] != labels.shape[1] or not people.any():
            continue
        labels = labels[people]
        # Who was not found is wrong everywhere.
        predicted = np.nan_to_num(keypoints[known][people], nan=-1e6)
        sizes = np.nanmax(labels[..., :2], axis=1) - np.nanmin(labels[..., :2], axis=1)
        errors = point_errors(predicted, labels)
        similar = oks(predicted, labels, truth.skeleton, sizes.prod(axis=1))
        by_pck[name] = shares.tolist(), [pck(errors, sizes.max(axis=1), share) or 0.0 for share in shares.tolist()]
        by_oks[name] = limits.tolist(), [float((similar >= limit).mean()) for limit in limits]
    if not by_pck:
        return []
    points = plot_curves(by_pck, "distance, as a share of the box's longer side", "share of points", "PCK")
    persons = plot_curves(by_oks, "OKS at least", "share of images", "OKS")
    return [
        figure(points, "Share of keypoints within a distance of the truth"),
        figure(persons, "Share of images whose OKS is at least a value"),
    ]
