"""Metrics of predicted keypoints: RMSE, PCK and OKS-AP, overall, per keypoint and per camera.

There is one person per image. Coordinates are OpenCV pixel indices; every metric depends only on differences of
coordinates, so Detectron2's half-pixel shift changes no metric. A truth point is labelled if its x and y are finite;
unlabelled points are left out of every metric. The visibility value is ignored: a labelled point outside the image
counts, as it does in the competition.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton

PCK_THRESHOLDS = (0.02, 0.05, 0.1)
"""Largest errors of a correct keypoint, each divided by the longer side of the person's box."""
OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""OKS thresholds of COCO: a detection is a hit at every threshold that its OKS reaches."""
_RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO averages the precision."""
_NUM_SAMPLES = 2000
"""Number of bootstrap samples of `rmse_interval`."""

Interval = tuple[float, float]
"""Low and high end of a 95 % confidence interval."""


class _Metrics(BaseModel):
    """Base class of all metrics. A metric is in pixels or in [0, 1], and None if there is no labelled point."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """Return plain values in the order of the fields."""
        return self.model_dump(mode="json", by_alias=True)


class KeypointMetrics(_Metrics):
    """Metrics of one keypoint over all images.

    Attributes:
        rmse, rmse_interval, median_px: as in `Evaluation`.
        pck_005: PCK at 0.05 of the box's longer side; its key in JSON is "pck_0.05".
    """

    rmse: float | None
    rmse_interval: Interval | None
    median_px: float | None
    pck_005: float | None = Field(alias="pck_0.05")


class CameraMetrics(_Metrics):
    """Metrics of the images of one camera."""

    num_images: int
    rmse: float | None
    rmse_interval: Interval | None


class Evaluation(_Metrics):
    """Metrics of a set of predictions.

    Attributes:
        num_images: number of images.
        num_missing: number of images in which nobody was found.
        rmse: root of the mean squared error of all labelled x and y, in pixels (the competition's metric).
        rmse_interval: 95 % confidence interval of `rmse` (low, high) in pixels; None without scene names.
        median_px, p95_px: 50th and 95th percentile of the points' Euclidean errors, in pixels.
        pck: share of correct points among the labelled points, for each of `PCK_THRESHOLDS` ("0.02", "0.05" and "0.1").
            The box of a person is the box around the person's labelled truth points.
        ap, ap50, ap75: OKS-AP as COCO defines it, with the width * height of the box as the person's area.
        by_keypoint: metrics per keypoint name.
        by_camera: metrics per camera name.
    """

    num_images: int
    num_missing: int
    rmse: float | None
    rmse_interval: Interval | None
    median_px: float | None
    p95_px: float | None
    pck: dict[str, float | None]
    ap: float | None
    ap50: float | None
    ap75: float | None
    by_keypoint: dict[str, KeypointMetrics]
    by_camera: dict[str, CameraMetrics]


def evaluate_keypoints(
    predictions: FloatArray,
    truth: FloatArray,
    skeleton: Skeleton,
    *,
    found: BoolArray | None = None,
    scores: FloatArray | None = None,
    cameras: Sequence[str] | None = None,
    scenes: Sequence[str] | None = None,
) -> Evaluation:
    """Compute all metrics of a set of predictions.

    Args:
        predictions: (N, K, 3) predicted x, y, score in pixels, all finite; images without a detection need fallback
            values.
        truth: (N, K, 3) x, y, v in pixels; x and y of unlabelled points are NaN.
        skeleton: names and sigmas of the K keypoints.
        found: (N,) whether the person was found. A person that was not found counts in `num_missing` and, by its
            fallback values, in the RMSE, percentiles and PCK, but is no detection for OKS-AP. None: all were found.
        scores: (N,) scores by which OKS-AP ranks the persons. None: the mean score of each person's keypoints.
        cameras: (N,) camera names. None leaves `by_camera` empty.
        scenes: (N,) scene names. None leaves every `rmse_interval` None.

    Raises:
        DataError: a predicted number is not finite, or a truth coordinate is infinite.
        ValueError: array shapes do not fit each other or the skeleton.
    """
    predictions, truth = np.asarray(predictions, dtype=float), np.asarray(truth, dtype=float)
    found = np.ones(len(predictions), dtype=bool) if found is None else np.asarray(found, dtype=bool)
    row_arrays = {"found": found, "scores": scores, "cameras": cameras, "scenes": scenes}
    _check_arrays(predictions, truth, skeleton, row_arrays)
    scores = predictions[..., 2].mean(axis=1) if scores is None else scores
    sizes = box_sizes(truth)
    errors, longer_sides = point_errors(predictions, truth), sizes.max(axis=1)
    precisions = average_precision(oks(predictions, truth, skeleton, sizes.prod(axis=1)), scores, found)
    return Evaluation(
        num_images=len(predictions),
        num_missing=int((~found).sum()),
        rmse=rmse(errors),
        rmse_interval=rmse_interval(errors, scenes),
        median_px=_percentile(errors, 50),
        p95_px=_percentile(errors, 95),
        pck={str(threshold): pck(errors, longer_sides, threshold) for threshold in PCK_THRESHOLDS},
        ap=_none_if_nan(precisions.mean()),
        ap50=_none_if_nan(precisions[0]),
        ap75=_none_if_nan(precisions[5]),
        by_keypoint={
            name: _keypoint_metrics(errors[:, [k]], longer_sides, scenes) for k, name in enumerate(skeleton.names)
        },
        by_camera=_camera_metrics(errors, cameras or (), scenes),
    )


def point_errors(predictions: FloatArray, truth: FloatArray) -> FloatArray:
    """Return the Euclidean distances (..., K) in pixels between points (..., K, 2+); NaN for unlabelled points."""
    return np.asarray(np.linalg.norm(predictions[..., :2] - truth[..., :2], axis=-1))


def rmse(errors: FloatArray) -> float | None:
    """Compute the root mean square of the *coordinate* errors in pixels from point errors of any shape.

    A point error d has d^2 = dx^2 + dy^2, so the mean square of the coordinate errors is half the mean of d^2. NaN
    errors are left out; without a finite error the result is None.
    """
    finite = errors[np.isfinite(errors)]
    return float(np.sqrt(np.mean(finite**2) / 2)) if finite.size else None


def rmse_interval(errors: FloatArray, scenes: Sequence[str] | None) -> Interval | None:
    """Compute the 95 % bootstrap percentile interval of the RMSE in pixels (Efron and Tibshirani, 1993).

    Whole scenes are resampled, because the frames of a scene are not independent of each other.

    Args:
        errors: (N, K) point errors in pixels, NaN for unlabelled points.
        scenes: (N,) scene names; None if they are unknown.

    Returns:
        (low, high); None without scene names, or if fewer than two scenes have a labelled point.
    """
    if scenes is None:
        return None
    labelled = np.isfinite(errors)
    names, scene_indices = np.unique(np.array(list(scenes), dtype=str), return_inverse=True)
    sums = np.bincount(scene_indices, np.where(labelled, errors**2, 0.0).sum(axis=1), minlength=len(names))
    counts = np.bincount(scene_indices, labelled.sum(axis=1), minlength=len(names))
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(counts) < 2:
        return None
    rng = np.random.default_rng(0)
    samples = np.empty(_NUM_SAMPLES)
    for i in range(_NUM_SAMPLES):  # all samples at once would take gigabytes for 100,000 scenes
        choices = rng.integers(len(counts), size=len(counts))
        samples[i] = np.sqrt(sums[choices].sum() / counts[choices].sum() / 2)  # halved as in `rmse`
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def pck(errors: FloatArray, longer_sides: FloatArray, threshold: float) -> float | None:
    """Compute the percentage of correct keypoints (PCK) as a share in [0, 1].

    Args:
        errors: (N, K) point errors in pixels, NaN for unlabelled points.
        longer_sides: (N,) the longer side of each person's box in pixels, as in Yang and Ramanan (2013). The box of a
            person with one labelled point has size 0, so the point is correct only if its error is 0.
        threshold: largest error of a correct point, divided by the longer side.

    Returns:
        None if no point is labelled.
    """
    labelled = np.isfinite(errors)
    correct = errors <= threshold * longer_sides[:, None]  # False for NaN
    return float(correct.sum() / labelled.sum()) if labelled.any() else None


def oks(predictions: FloatArray, truth: FloatArray, skeleton: Skeleton, areas: FloatArray) -> FloatArray:
    """Compute the object keypoint similarity (N,) in [0, 1]; NaN for a person without a labelled point.

    OKS is the mean of exp(-d^2 / (2 area (2 sigma)^2)) over the labelled points, as cocodataset.org defines it.

    Args:
        predictions: (N, K, 2+) points in pixels.
        truth: (N, K, 2+) points in pixels, NaN for unlabelled points.
        skeleton: gives the sigmas.
        areas: (N,) areas of the persons in square pixels.
    """
    squares = ((predictions[..., :2] - truth[..., :2]) ** 2).sum(axis=-1)
    labelled = np.isfinite(squares)
    # As in pycocotools, np.spacing(1) is added and the divisions have this order, so that the rounding is the same.
    exponents = squares / (2 * np.array(skeleton.sigmas)) ** 2 / (areas[:, None] + np.spacing(1)) / 2
    totals = np.where(labelled, np.exp(-exponents), 0.0).sum(axis=1)
    counts = labelled.sum(axis=1)
    return np.asarray(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan))


def average_precision(similarities: FloatArray, scores: FloatArray, found: BoolArray) -> FloatArray:
    """Compute the average precision (10,) at each of `OKS_THRESHOLDS` by COCO's 101-point interpolation.

    There is one person per image. Equal scores keep the order of the rows, as in pycocotools. A person without a
    labelled point counts as neither a miss nor a false positive, like COCO's ignored annotations.

    Args:
        similarities: (N,) OKS, NaN for a person without a labelled point.
        scores: (N,) scores of the persons; only their order matters.
        found: (N,) whether each row is a detection.

    Returns:
        The precisions; NaN if no person has a labelled point.
    """
    labelled = np.isfinite(similarities)
    if not labelled.any():
        return np.full(len(OKS_THRESHOLDS), np.nan)
    detected = labelled & found
    ranked = similarities[detected][np.argsort(-scores[detected], kind="stable")]
    num_hits = np.cumsum(ranked >= OKS_THRESHOLDS[:, None], axis=1)  # (10, detections)
    precisions = num_hits / (np.arange(1, len(ranked) + 1) + np.spacing(1))
    # The interpolated precision at a recall is the highest precision at this recall or above.
    precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    averages = np.zeros(len(OKS_THRESHOLDS))
    for index, recalls in enumerate(num_hits / labelled.sum()):
        ranks = np.searchsorted(recalls, _RECALLS, side="left")  # the first rank that reaches each recall
        ranks = ranks[ranks < len(ranked)]
        averages[index] = precisions[index, ranks].sum() / len(_RECALLS)
    return averages


def box_sizes(truth: FloatArray) -> FloatArray:
    """Return width and height (N, 2) of the box around each person's labelled points; zeros without labelled points."""
    labelled = np.asarray(np.isfinite(truth[..., :2]).all(axis=-1, keepdims=True))
    high = np.max(truth[..., :2], axis=1, where=labelled, initial=-np.inf)
    low = np.min(truth[..., :2], axis=1, where=labelled, initial=np.inf)
    return np.asarray(np.where(labelled.any(axis=1), high - low, 0.0))


def _keypoint_metrics(errors: FloatArray, longer_sides: FloatArray, scenes: Sequence[str] | None) -> KeypointMetrics:
    return KeypointMetrics(
        rmse=rmse(errors),
        rmse_interval=rmse_interval(errors, scenes),
        median_px=_percentile(errors, 50),
        pck_005=pck(errors, longer_sides, 0.05),
    )


def _camera_metrics(
    errors: FloatArray, cameras: Sequence[str], scenes: Sequence[str] | None
) -> dict[str, CameraMetrics]:
    metrics = {}
    for name in sorted(set(cameras)):
        rows = [row for row, camera in enumerate(cameras) if camera == name]
        camera_scenes = [scenes[row] for row in rows] if scenes is not None else None
        metrics[name] = CameraMetrics(
            num_images=len(rows), rmse=rmse(errors[rows]), rmse_interval=rmse_interval(errors[rows], camera_scenes)
        )
    return metrics


def _percentile(errors: FloatArray, percent: float) -> float | None:
    finite = errors[np.isfinite(errors)]
    return float(np.percentile(finite, percent)) if finite.size else None


def _none_if_nan(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _check_arrays(predictions: FloatArray, truth: FloatArray, skeleton: Skeleton, row_arrays: dict[str, Any]) -> None:
    expected = (len(predictions), len(skeleton), 3)
    if predictions.shape != expected or truth.shape != expected:
        raise ValueError(f"predictions {predictions.shape} and truth {truth.shape} must be (N, {len(skeleton)}, 3)")
    for name, values in row_arrays.items():
        if values is not None and np.shape(values) != (len(predictions),):
            raise ValueError(f"{name} {np.shape(values)} must be {(len(predictions),)}")
    if row_arrays["scores"] is not None and not np.isfinite(row_arrays["scores"]).all():
        raise DataError("scores: a score is not finite: predict again")
    not_finite = np.argwhere(~np.isfinite(predictions))
    if len(not_finite):
        row, k, column = not_finite[0]
        raise DataError(
            f"predictions: row {row}: {('x', 'y', 'score')[column]} of {skeleton.names[k]} is not finite (got "
            f"{predictions[row, k, column]}; {len(not_finite)} such numbers): fill the images in which nobody was found"
        )
    infinite = np.argwhere(np.isinf(truth[..., :2]))
    if len(infinite):
        row, k, _ = infinite[0]
        raise DataError(f"truth: row {row}: {skeleton.names[k]} is infinite: leave unlabelled points empty")
