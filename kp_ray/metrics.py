"""How good predicted keypoints are: RMSE, PCK and OKS-AP, overall, per keypoint and per camera.

One person an image. Coordinates are OpenCV pixel indices; every figure depends on differences of coordinates only, so
the +0.5 of continuous coordinates changes none of them. A truth point is labelled when its x and y are finite; what is
not labelled is left out of every figure. The visibility value itself is not looked at: a labelled point that lies
outside the picture counts, as it does in the competition.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton

PCK_SHARES = (0.05, 0.1)
OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)


def evaluate_keypoints(
    predicted: FloatArray,
    truth: FloatArray,
    skeleton: Skeleton,
    *,
    found: BoolArray | None = None,
    scores: FloatArray | None = None,
    cameras: Sequence[str] | None = None,
    scenes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All figures of a set of predictions, fit for JSON.

    Args:
        predicted: (N, K, 3) x, y, score in pixels; every number finite, also where nobody was found (there it is what
            some fallback filled in).
        truth: (N, K, 3) x, y, v in pixels, NaN x and y where unlabelled.
        skeleton: names and sigmas of the K keypoints.
        found: (N,) whether a person was found. The others count in every error figure and in `num_missing`; for OKS-AP
            they are not detections. None: all found.
        scores: (N,) of the persons, ranking them for OKS-AP. None: the mean score of a person's keypoints.
        cameras: (N,) names for `by_camera`. None: it stays empty.
        scenes: (N,) names for each `rmse_interval`. None: they are None.

    Returns:
        `num_images`, `num_missing`; `rmse`: root of the mean squared error of all labelled x and y, in pixels (the
        competition's metric); `rmse_interval`: see `rmse_interval`; `median_px`, `p95_px` of the points' Euclidean
        errors; `pck`: per share a of "0.05" and "0.1", how many of the labelled points lie within a * max(width,
        height) of the person's box, which is that of the labelled truth points; `ap`, `ap50`, `ap75`: OKS-AP as COCO
        has it, with width * height of the box as the area; `by_keypoint`: name -> `rmse`, `rmse_interval`,
        `median_px`, `pck_0.05`; `by_camera`: camera -> `num_images`, `rmse`, `rmse_interval`. A figure of nothing is
        None.

    Raises:
        DataError: a predicted number is not finite, or a truth coordinate is infinite.
        ValueError: array shapes do not fit each other or the skeleton.
    """
    predicted, truth = np.asarray(predicted, dtype=float), np.asarray(truth, dtype=float)
    found = np.ones(len(predicted), dtype=bool) if found is None else np.asarray(found, dtype=bool)
    per_row = {"found": found, "scores": scores, "cameras": cameras, "scenes": scenes}
    _check(predicted, truth, skeleton, per_row)
    scores = predicted[..., 2].mean(axis=1) if scores is None else scores
    sizes = _box_sizes(truth)
    errors, longest = point_errors(predicted, truth), sizes.max(axis=1)
    precisions = average_precision(oks(predicted, truth, skeleton, sizes.prod(axis=1)), scores, found)
    return {
        "num_images": len(predicted),
        "num_missing": int((~found).sum()),
        **_rmse_and_interval(errors, scenes),
        "median_px": _percentile(errors, 50),
        "p95_px": _percentile(errors, 95),
        "pck": {str(share): pck(errors, longest, share) for share in PCK_SHARES},
        "ap": _plain(precisions.mean()),
        "ap50": _plain(precisions[0]),
        "ap75": _plain(precisions[5]),
        "by_keypoint": {name: _of_keypoint(errors[:, [k]], longest, scenes) for k, name in enumerate(skeleton.names)},
        "by_camera": _by_camera(errors, cameras or (), scenes),
    }


def point_errors(predicted: FloatArray, truth: FloatArray) -> FloatArray:
    """Euclidean distances (..., K) in pixels between points (..., K, 2+); NaN where the truth is unlabelled."""
    return np.asarray(np.linalg.norm(predicted[..., :2] - truth[..., :2], axis=-1))


def rmse(errors: FloatArray) -> float | None:
    """Root mean square of the *coordinate* errors in pixels, from point errors of any shape (NaN: left out).

    A point error d has d^2 = dx^2 + dy^2, so the mean over the 2K coordinates is half the mean of d^2.
    """
    known = errors[np.isfinite(errors)]
    return float(np.sqrt(np.mean(known**2) / 2)) if known.size else None


def rmse_interval(
    errors: FloatArray, scenes: Sequence[str], *, share: float = 0.95, num_samples: int = 2000, seed: int = 0
) -> list[float] | None:
    """Between which RMSE the middle `share` of bootstrap samples lies: [low, high] in pixels.

    Whole scenes are drawn, because the frames of one are nearly the same picture (Efron and Tibshirani, 1993, the
    percentile interval).

    Args:
        errors: (N, K) point errors in pixels, NaN where unlabelled.
        scenes: (N,).

    Returns:
        None with fewer than two scenes that have a labelled point.
    """
    known = np.isfinite(errors)
    names, scene_of = np.unique(np.array(list(scenes), dtype=str), return_inverse=True)
    squares = np.bincount(scene_of, np.where(known, errors**2, 0.0).sum(axis=1), minlength=len(names))
    counts = np.bincount(scene_of, known.sum(axis=1), minlength=len(names))
    squares, counts = squares[counts > 0], counts[counts > 0]
    if len(counts) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(counts), size=(num_samples, len(counts)))
    samples = np.sqrt(squares[drawn].sum(axis=1) / counts[drawn].sum(axis=1) / 2)
    return [float(bound) for bound in np.quantile(samples, [(1 - share) / 2, (1 + share) / 2])]


def pck(errors: FloatArray, longest: FloatArray, share: float) -> float | None:
    """Percentage of correct keypoints, as a share in [0, 1].

    Args:
        errors: (N, K) point errors in pixels, NaN where unlabelled.
        longest: (N,) the longer side of each person's box in pixels: PCK "of box size" (Yang and Ramanan, 2013). The
            box of a person with one labelled point has size 0, so only an exact hit is correct there.
        share: of the longer side within which a point is correct.
    """
    labelled = np.isfinite(errors)
    # NaN compares as not correct.
    return float((errors <= share * longest[:, None]).sum() / labelled.sum()) if labelled.any() else None


def oks(predicted: FloatArray, truth: FloatArray, skeleton: Skeleton, areas: FloatArray) -> FloatArray:
    """Object keypoint similarity (N,) in [0, 1]; NaN for a person with no labelled point.

    The mean over the labelled points of exp(-d^2 / (2 area (2 sigma)^2)), as cocodataset.org defines it.

    Args:
        predicted, truth: (N, K, 2+) in pixels; truth NaN where unlabelled.
        skeleton: its sigmas.
        areas: (N,) of the persons in square pixels.
    """
    squared = ((predicted[..., :2] - truth[..., :2]) ** 2).sum(axis=-1)
    labelled = np.isfinite(squared)
    # The order of the divisions and the smallest float beside the area are pycocotools', for equal rounding.
    exponent = squared / (2 * np.array(skeleton.sigmas)) ** 2 / (areas[:, None] + np.spacing(1)) / 2
    total = np.where(labelled, np.exp(-exponent), 0.0).sum(axis=1)
    count = labelled.sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def average_precision(similarities: FloatArray, scores: FloatArray, found: BoolArray) -> FloatArray:
    """Average precision (10,) at each of `OKS_THRESHOLDS`, one person an image, COCO's 101-point interpolation.

    Equal scores keep the order of the rows, as in pycocotools. A person with no labelled point is neither to be found
    nor a false alarm, like COCO's ignored annotations.

    Args:
        similarities: (N,) OKS, NaN for a person with no labelled point.
        scores: (N,) of the persons; only their order matters.
        found: (N,) which rows are detections.

    Returns:
        NaN when no person has a labelled point.
    """
    labelled = np.isfinite(similarities)
    if not labelled.any():
        return np.full(len(OKS_THRESHOLDS), np.nan)
    detected = labelled & found
    ranked = similarities[detected][np.argsort(-scores[detected], kind="stable")]
    hits = np.cumsum(ranked >= OKS_THRESHOLDS[:, None], axis=1)  # (10, detections)
    precision = hits / (np.arange(1, len(ranked) + 1) + np.spacing(1))
    # Precision at a recall is the best one at that recall or a higher.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(OKS_THRESHOLDS))
    for t, recall in enumerate(hits / labelled.sum()):
        reached = np.searchsorted(recall, _RECALLS, side="left")
        reached = reached[reached < len(ranked)]
        result[t] = precision[t, reached].sum() / len(_RECALLS)
    return result


def _box_sizes(truth: FloatArray) -> FloatArray:
    labelled = np.asarray(np.isfinite(truth[..., :2]).all(axis=-1, keepdims=True))
    high = np.max(truth[..., :2], axis=1, where=labelled, initial=-np.inf)
    low = np.min(truth[..., :2], axis=1, where=labelled, initial=np.inf)
    return np.asarray(np.where(labelled.any(axis=1), high - low, 0.0))


def _rmse_and_interval(errors: FloatArray, scenes: Sequence[str] | None) -> dict[str, Any]:
    return {"rmse": rmse(errors), "rmse_interval": rmse_interval(errors, scenes) if scenes is not None else None}


def _of_keypoint(errors: FloatArray, longest: FloatArray, scenes: Sequence[str] | None) -> dict[str, Any]:
    middle, share = _percentile(errors, 50), pck(errors, longest, 0.05)
    return {**_rmse_and_interval(errors, scenes), "median_px": middle, "pck_0.05": share}


def _by_camera(errors: FloatArray, cameras: Sequence[str], scenes: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    figures = {}
    for name in sorted(set(cameras)):
        rows = [row for row, camera in enumerate(cameras) if camera == name]
        here = [scenes[row] for row in rows] if scenes is not None else None
        figures[name] = {"num_images": len(rows), **_rmse_and_interval(errors[rows], here)}
    return figures


def _percentile(errors: FloatArray, percent: float) -> float | None:
    known = errors[np.isfinite(errors)]
    return float(np.percentile(known, percent)) if known.size else None


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _check(predicted: FloatArray, truth: FloatArray, skeleton: Skeleton, per_row: dict[str, Any]) -> None:
    expected = (len(predicted), len(skeleton), 3)
    if predicted.shape != expected or truth.shape != expected:
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} must both be (N, {len(skeleton)}, 3)")
    for name, values in per_row.items():
        if values is not None and np.shape(values) != (len(predicted),):
            raise ValueError(f"{name} {np.shape(values)} must be {(len(predicted),)}")
    if per_row["scores"] is not None and not np.isfinite(per_row["scores"]).all():
        raise DataError("scores: every value must be finite")
    wrong = np.argwhere(~np.isfinite(predicted))
    if len(wrong):
        row, k, column = wrong[0]
        raise DataError(
            f"predictions: row {row}: {('x', 'y', 'score')[column]} of {skeleton.names[k]} is "
            f"{predicted[row, k, column]} ({len(wrong)} such numbers): fill the images where nobody was found first"
        )
    infinite = np.argwhere(np.isinf(truth[..., :2]))
    if len(infinite):
        row, k, _ = infinite[0]
        raise DataError(f"truth: row {row}: {skeleton.names[k]} is infinite: leave an unlabelled point empty")
