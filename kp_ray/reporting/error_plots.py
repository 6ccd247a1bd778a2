"""Section "Errors": RMSE per keypoint and camera, PCK and OKS curves."""

from dataclasses import dataclass

import numpy as np

from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray
from kp_ray.metrics import PCK_THRESHOLDS, box_sizes, oks, pck, point_errors
from kp_ray.prediction.records import RunEvaluation
from kp_ray.reporting.formatting import Figure, svg_figure
from kp_ray.reporting.run_files import RunFiles
from kp_ray.visualization.plots import plot_bars, plot_curves

_NOT_FOUND_PX = -1e6
"""Coordinate of the points of a person whom a member did not find, far enough to be wrong at every threshold."""

Curve = tuple[list[float], list[float]]
"""The x values and the y values of a curve."""


@dataclass(frozen=True)
class ErrorSection:
    """Plots of the errors.

    Attributes:
        figures: RMSE per keypoint and per camera, which need an evaluation; PCK and OKS curves, which need ground
            truth.
    """

    figures: tuple[Figure, ...]


def error_section(files: RunFiles) -> ErrorSection | None:
    """Build the section; None if there is neither an evaluation nor a prediction with ground truth."""
    bars = _error_bars(files.evaluation) if files.evaluation else []
    curves = _success_curves(files, files.truth) if files.truth else []
    return ErrorSection((*bars, *curves)) if bars or curves else None


def _error_bars(evaluation: RunEvaluation) -> list[Figure]:
    """Plot RMSE per keypoint and per camera, each with its confidence interval."""
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
    """Plot PCK at each distance threshold, and at each OKS threshold the share of images that reach it.

    Each plot has one curve per member and one of the submission.
    """
    pck_curves, oks_curves = {}, {}
    for name, images, keypoints in _named_predictions(files, truth):
        curves = _pck_and_oks(images, keypoints, truth)
        if curves:
            pck_curves[name], oks_curves[name] = curves
    if not pck_curves:
        return []
    pck_svg = plot_curves(pck_curves, "distance, as a share of the box's longer side", "share of points", "PCK")
    oks_svg = plot_curves(oks_curves, "OKS at least", "share of images", "OKS")
    return [
        svg_figure(pck_svg, "Share of keypoints within a distance of the truth"),
        svg_figure(oks_svg, "Share of images whose OKS is at least a value"),
    ]


def _named_predictions(files: RunFiles, truth: Annotations) -> list[tuple[str, tuple[str, ...], FloatArray]]:
    """Return (name, images, keypoints (N, K, 3)) of each member, and last of the submission, named "ensemble"."""
    predictions: list[tuple[str, tuple[str, ...], FloatArray]] = []
    if files.predictions is not None:
        members = zip(files.predictions.members, files.predictions.keypoints, strict=True)
        predictions += [(name, files.predictions.images, keypoints) for name, keypoints in members]
    if files.submission is not None and files.submission.skeleton.names == truth.skeleton.names:
        predictions.append(("ensemble", files.submission.images, files.submission.keypoints))
    return predictions


def _pck_and_oks(images: tuple[str, ...], keypoints: FloatArray, truth: Annotations) -> tuple[Curve, Curve] | None:
    """Compute the PCK curve and the OKS curve over the images with ground truth.

    Args:
        images: names of the N predicted images.
        keypoints: (N, K, 3) predicted x, y and score; NaN where nobody was found.
        truth: labels of the test images.

    Returns:
        The curves; None if no image has a labelled point in `truth`, or if `truth` has another number of keypoints.
    """
    truth_rows = {image: row for row, image in enumerate(truth.images)}
    rows = [row for row, image in enumerate(images) if image in truth_rows]
    labels = truth.keypoints[[truth_rows[images[row]] for row in rows]]
    is_labelled = np.asarray(np.isfinite(labels[..., 0]).any(axis=1))
    if keypoints.shape[1] != labels.shape[1] or not is_labelled.any():
        return None
    labels = labels[is_labelled]
    predictions = np.nan_to_num(keypoints[rows][is_labelled], nan=_NOT_FOUND_PX)
    sizes = box_sizes(labels)
    errors, longer_sides = point_errors(predictions, labels), sizes.max(axis=1)
    similarities = oks(predictions, labels, truth.skeleton, sizes.prod(axis=1))
    pck_thresholds = np.linspace(PCK_THRESHOLDS[0], 0.2, 37).tolist()
    oks_thresholds = np.linspace(0.5, 1, 51).tolist()
    return (
        (pck_thresholds, [pck(errors, longer_sides, threshold) or 0.0 for threshold in pck_thresholds]),
        (oks_thresholds, [float((similarities >= threshold).mean()) for threshold in oks_thresholds]),
    )
