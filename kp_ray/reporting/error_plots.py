"""Section "Errors": RMSE per keypoint and camera, PCK and OKS curves."""

from dataclasses import dataclass

import numpy as np

from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray
from kp_ray.metrics import oks, pck, point_errors
from kp_ray.prediction.records import RunEvaluation
from kp_ray.reporting.formatting import Figure, svg_figure
from kp_ray.reporting.run_files import RunFiles
from kp_ray.visualization.plots import plot_bars, plot_curves

_NOT_FOUND_PX = -1e6
"""Coordinate of the points of a person who was not found, far from any truth."""

Curve = tuple[list[float], list[float]]
"""x and y."""


@dataclass(frozen=True)
class ErrorSection:
    """RMSE per keypoint and per camera, PCK and OKS curves, as far as they are known."""

    figures: tuple[Figure, ...]


def error_section(files: RunFiles) -> ErrorSection | None:
    """Build the section; None without an evaluation and without predictions that have a truth."""
    bars = _error_bars(files.evaluation) if files.evaluation else []
    curves = _success_curves(files, files.truth) if files.truth else []
    return ErrorSection((*bars, *curves)) if bars or curves else None


def _error_bars(evaluation: RunEvaluation) -> list[Figure]:
    """Plot the RMSE per keypoint and per camera with its confidence intervals."""
    figures = []
    for kind, labels, rows in (
        ("keypoint", [*evaluation.by_keypoint], [*evaluation.by_keypoint.values()]),
        ("camera", [f"camera {name or 'unknown'}" for name in evaluation.by_camera], [*evaluation.by_camera.values()]),
    ):
        if rows:
            values, intervals = [row.rmse for row in rows], [row.rmse_interval for row in rows]
            svg = plot_bars(labels, values, "RMSE (px)", f"Error by {kind}", intervals)
            figures.append(svg_figure(svg, f"RMSE of each {kind}, in pixels"))
    return figures


def _success_curves(files: RunFiles, truth: Annotations) -> list[Figure]:
    """Plot PCK over the distance and the share of images over their OKS, for each member and the submission."""
    pck_curves, oks_curves = {}, {}
    for name, images, keypoints in _predicted(files, truth):
        curves = _pck_and_oks(images, keypoints, truth)
        if curves:
            pck_curves[name], oks_curves[name] = curves
    if not pck_curves:
        return []
    points = plot_curves(pck_curves, "distance, as a share of the box's longer side", "share of points", "PCK")
    people = plot_curves(oks_curves, "OKS at least", "share of images", "OKS")
    return [
        svg_figure(points, "Share of keypoints within a distance of the truth"),
        svg_figure(people, "Share of images whose OKS is at least a value"),
    ]


def _predicted(files: RunFiles, truth: Annotations) -> list[tuple[str, tuple[str, ...], FloatArray]]:
    """Return name, images and keypoints (N, K, 3) of each member, then of the submission."""
    predicted: list[tuple[str, tuple[str, ...], FloatArray]] = []
    if files.predictions is not None:
        members = zip(files.predictions.members, files.predictions.keypoints, strict=True)
        predicted += [(name, files.predictions.images, keypoints) for name, keypoints in members]
    if files.submission is not None and files.submission.skeleton.names == truth.skeleton.names:
        predicted.append(("ensemble", files.submission.images, files.submission.keypoints))
    return predicted


def _pck_and_oks(images: tuple[str, ...], keypoints: FloatArray, truth: Annotations) -> tuple[Curve, Curve] | None:
    """Compute both curves of the images that have a labelled truth; None if no image has one."""
    truth_rows = {image: row for row, image in enumerate(truth.images)}
    known = [row for row, image in enumerate(images) if image in truth_rows]
    labels = truth.keypoints[[truth_rows[images[row]] for row in known]]
    labelled = np.asarray(np.isfinite(labels[..., 0]).any(axis=1))
    if keypoints.shape[1] != labels.shape[1] or not labelled.any():
        return None
    labels = labels[labelled]
    predicted = np.nan_to_num(keypoints[known][labelled], nan=_NOT_FOUND_PX)
    sizes = np.nanmax(labels[..., :2], axis=1) - np.nanmin(labels[..., :2], axis=1)
    errors, longest = point_errors(predicted, labels), sizes.max(axis=1)
    similarities = oks(predicted, labels, truth.skeleton, sizes.prod(axis=1))
    shares, thresholds = np.linspace(0, 0.2, 41).tolist(), np.linspace(0.5, 1, 51).tolist()
    return (
        (shares, [pck(errors, longest, share) or 0.0 for share in shares]),
        (thresholds, [float((similarities >= threshold).mean()) for threshold in thresholds]),
    )
