"""Fuse several members' predictions of the same images into one per image.

In each image, members that found nobody are left out, outliers are rejected, and the remaining points are combined.
Then images in which nobody was found are filled, and clips are smoothed. Coordinates are OpenCV pixel indices. The
result is bit-identical for any order of the members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kp_ray.ensemble.temporal import fill_missing, smooth_clips
from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray

MIN_SIGMA_PX = 2.0
"""Smallest robust sigma in pixels.

Without a minimum, a member that is a few pixels off would be an outlier where the other members agree exactly.
"""
_MAD_TO_SIGMA = 1.4826
"""Ratio of standard deviation to median absolute deviation for a normal distribution in one dimension."""
Method = Literal["mean", "median", "score"]


@dataclass(frozen=True, eq=False)
class Fusion:
    """The fused predictions of N images.

    Attributes:
        keypoints: (N, K, 3) x, y, score in pixels, all finite.
        has_high_score: (N,) True where the detection of at least one member reaches the upper threshold.
        fallback_names: fallback of each image: "" (none: a detection reaches the upper threshold), "low score"
            (detections between the thresholds), "frame <number>" or "mean pose" (see `fill_missing`), or "zeros".
        num_rejected: for each member, the number of points that were dropped as outliers.
    """

    keypoints: FloatArray
    has_high_score: BoolArray
    fallback_names: list[str]
    num_rejected: list[int]


def fuse_clips(
    keypoints: FloatArray,
    scores: FloatArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    thresholds: tuple[float, float],
    method: Method = "mean",
    weights: FloatArray | None = None,
    reject_sigmas: float | None = None,
    missing: Literal["fill", "zeros"] = "fill",
    mean_pose: FloatArray | None = None,
    smooth_frames: float | None = None,
) -> Fusion:
    """Fuse M members' predictions into one per image; fallbacks are reported in `fallback_names`.

    An image's points come from the first of these that exists:

    1. detections whose score reaches the upper threshold,
    2. detections whose score reaches the lower threshold,
    3. `fill_missing`, or zeros if `missing` is "zeros".

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; ignored where the detection's score is 0.
        scores: (M, N) scores of the detections, 0 where a member found nobody.
        scenes, cameras, frames: (N,) scene, camera and frame number of each image.
        thresholds: upper and lower threshold of the detections' scores.
        method, weights, reject_sigmas: as in `fuse`, with `scores` as the `detection_scores`.
        missing: "fill" calls `fill_missing`; "zeros" writes zeros.
        mean_pose: (K, 2), as in `fill_missing`.
        smooth_frames: `sigma_frames` of `smooth_clips`; None does not smooth.

    Raises:
        DataError: as `fuse` and `fill_missing`.
    """
    if weights is not None:
        scores = _without_unused_members(scores, np.asarray(weights, dtype=float), thresholds[1])
    selected, has_high_score = select_detections(scores, thresholds)
    points, found_by_any = fuse(
        keypoints, selected, method=method, detection_scores=scores, weights=weights, reject_sigmas=reject_sigmas
    )
    is_candidate = select_points(keypoints, selected, weights, None)
    is_kept = select_points(keypoints, selected, weights, reject_sigmas)
    num_rejected = (is_candidate & ~is_kept).sum(axis=(1, 2))
    if missing == "zeros":
        points = np.where(found_by_any[:, None, None], points, 0.0)
        fallback_names = ["" if is_found else "zeros" for is_found in found_by_any.tolist()]
    else:
        points, fallback_names = fill_missing(points, found_by_any, scenes, cameras, frames, mean_pose=mean_pose)
    if smooth_frames is not None:
        points = smooth_clips(points, found_by_any, scenes, cameras, frames, smooth_frames)
    has_low_score = (found_by_any & ~has_high_score).tolist()
    fallback_names = [
        "low score" if is_low else fallback for is_low, fallback in zip(has_low_score, fallback_names, strict=True)
    ]
    return Fusion(points, has_high_score, fallback_names, num_rejected.tolist())


def _without_unused_members(scores: FloatArray, weights: FloatArray, lower_threshold: float) -> FloatArray:
    """Return the scores with 0 for members of weight 0 in images where another member reaches the lower threshold.

    Args:
        scores: (M, N) scores of the detections.
        weights: (M,) or (M, K) weights of the members.
        lower_threshold: the lower of the thresholds.
    """
    has_weight = weights.reshape(len(scores), -1).any(axis=1, keepdims=True)
    is_found = (has_weight & (scores >= lower_threshold) & (scores > 0)).any(axis=0)
    return np.where(has_weight | ~is_found, scores, 0.0)


def select_detections(scores: FloatArray, thresholds: tuple[float, float]) -> tuple[BoolArray, BoolArray]:
    """Select in each image the detections that reach the upper threshold or, if there are none, the lower threshold.

    Args:
        scores: (M, N) scores of the detections, 0 where a member found nobody.
        thresholds: upper and lower threshold.

    Returns:
        (M, N) True where a detection is selected, and (N,) True where a score reaches the upper threshold.
    """
    is_high, is_low = ((scores >= threshold) & (scores > 0) for threshold in thresholds)
    has_high_score = np.asarray(is_high.any(axis=0))
    return np.where(has_high_score, is_high, is_high | is_low), has_high_score


def fuse(
    keypoints: FloatArray,
    found: BoolArray,
    *,
    method: Method = "mean",
    detection_scores: FloatArray | None = None,
    weights: FloatArray | None = None,
    reject_sigmas: float | None = None,
) -> tuple[FloatArray, BoolArray]:
    """Fuse M members' predictions into one per image; NaN where no member found anyone.

    In each image, members that found nobody are left out. Points farther from the members' median than `reject_sigmas`
    robust sigmas are dropped (see `inliers`). Of the remaining points, x, y and score are each combined by `method`.

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; ignored where `found` is False.
        found: (M, N) True where a member found a person in an image.
        method: "mean" or "median", weighted by `weights`; or "score", the mean weighted by the product of weight,
            keypoint's score and detection's score.
        detection_scores: (M, N) scores of 0 or more, for method "score"; None for 1 everywhere.
        weights: (M,) or (M, K) weights of 0 or more; None for equal weights. A member with weight 0 is used only in
            images where no member with a positive weight found someone.
        reject_sigmas: number of robust sigmas; None keeps every point.

    Returns:
        Keypoints (N, K, 3), and found (N,). Where a single member found someone, its keypoints are unchanged.

    Raises:
        DataError: a found person has a number that is not finite, or a score or weight is negative or not finite.
        ValueError: shapes do not match, or the method is unknown.
    """
    if method not in ("mean", "median", "score"):
        raise ValueError(f"method: must be mean, median or score (got {method!r})")
    keypoints, found = np.asarray(keypoints, dtype=float), np.asarray(found, dtype=bool)
    _check_members(keypoints, found)
    point_weights = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    is_used = select_points(keypoints, found, weights, reject_sigmas)
    if method == "score":
        factors = np.ones(found.shape) if detection_scores is None else np.asarray(detection_scores, dtype=float)
        scores = np.where(found[..., None], factors[..., None] * keypoints[..., 2], 0.0)
        _check_non_negative("scores", scores, "predict again")
        point_weights = point_weights * scores
    point_weights = np.where(is_used, point_weights, 0.0)
    # Where all weights are 0, the members have equal weights.
    point_weights = np.where(point_weights.any(axis=0), point_weights, is_used)

    combine = _weighted_median if method == "median" else _weighted_mean
    found_by_any = np.asarray(found.any(axis=0))
    fused = np.full(keypoints.shape[1:], np.nan)
    # Unused points are set to infinity, which sorts last, and have weight 0.
    fused[found_by_any] = combine(
        np.where(is_used[..., None], keypoints, np.inf)[:, found_by_any], point_weights[:, found_by_any, :, None]
    )
    return fused, found_by_any


def inliers(points: FloatArray, reject_sigmas: float) -> BoolArray:
    """Find the members' points that are not outliers.

    The centre of each keypoint is the members' median in x and in y. A point is an outlier if it is farther from the
    centre than `reject_sigmas` robust sigmas. The robust sigma is 1.4826 times the median distance from the centre, and
    at least `MIN_SIGMA_PX`. For normal errors, the robust sigma is about 1.75 times the standard deviation of a
    coordinate, because distances are two-dimensional. The nearer half of the points is always kept. With fewer than
    three members there is no majority, so nothing is rejected.

    Args:
        points: (M, N, K, 2+) x, y in pixels; NaN for a missing point.
        reject_sigmas: positive number of robust sigmas.

    Returns:
        (M, N, K) True for an inlier; False for a missing point.
    """
    if not reject_sigmas > 0:
        raise ValueError(f"reject_sigmas: must be positive (got {reject_sigmas})")
    is_present = np.isfinite(points[..., 0])
    xy = points[..., :2]
    centre = _weighted_median(np.where(is_present[..., None], xy, np.inf), is_present[..., None])
    distances = np.linalg.norm(xy - centre, axis=-1)
    median_distance = _weighted_median(np.where(is_present, distances, np.inf), is_present)
    sigma = np.maximum(_MAD_TO_SIGMA * median_distance, MIN_SIGMA_PX)
    limit = np.maximum(reject_sigmas * sigma, median_distance)  # the median distance keeps the nearer half
    has_majority = is_present.sum(axis=0) >= 3
    return np.asarray(is_present & ((distances <= limit) | ~has_majority))


def _check_members(keypoints: FloatArray, found: BoolArray) -> None:
    if keypoints.ndim != 4 or keypoints.shape[-1] != 3 or not len(keypoints) or found.shape != keypoints.shape[:2]:
        raise ValueError(f"keypoints {keypoints.shape} must be (M, N, K, 3), M > 0, and found {found.shape} (M, N)")
    invalid = np.argwhere(found & ~np.isfinite(keypoints).all(axis=(2, 3)))
    if len(invalid):
        member, image = invalid[0]
        raise DataError(f"member {member}: image {image}: a coordinate or score is not finite: predict again")


def _check_non_negative(name: str, values: FloatArray, fix: str) -> None:
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise DataError(f"{name}: a value is negative or not finite: {fix}")


def _member_weights(weights: FloatArray | None, keypoints: FloatArray) -> FloatArray:
    """Return the weights (M, 1, K) or (M, 1, 1) of keypoints (M, N, K, 3)."""
    num_members, _, num_keypoints, _ = keypoints.shape
    array = np.ones(num_members) if weights is None else np.asarray(weights, dtype=float)
    if array.shape not in ((num_members,), (num_members, num_keypoints)):
        raise ValueError(f"weights {array.shape} must be ({num_members},) or ({num_members}, {num_keypoints})")
    _check_non_negative("weights", array, "correct predict.weights")
    return array.reshape(num_members, 1, -1)


def select_points(
    keypoints: FloatArray, found: BoolArray, weights: FloatArray | None, reject_sigmas: float | None
) -> BoolArray:
    """Select the points to combine, which are inliers of members that found someone and have a positive weight.

    Args: as in `fuse`.

    Returns:
        (M, N, K) True for a selected point. Where only members with weight 0 found someone, their inliers are selected.
    """
    point_weights = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    is_present = np.broadcast_to(found[:, :, None], point_weights.shape)
    has_weight = is_present & (point_weights > 0)
    is_used = np.asarray(np.where(has_weight.any(axis=0), has_weight, is_present))
    if reject_sigmas is None:
        return is_used
    return inliers(np.where(is_used[..., None], keypoints, np.nan), reject_sigmas)


def _sorted_by_value(values: FloatArray, weights: FloatArray | BoolArray) -> tuple[FloatArray, FloatArray]:
    """Sort values (M, ...) along the members' axis, infinite values last, and their weights in the same order.

    The sum of sorted values is bit-identical for any order of the members.
    """
    broadcast_weights = np.broadcast_to(np.asarray(weights, dtype=float), values.shape)
    order = np.lexsort((broadcast_weights, values), axis=0)
    return np.take_along_axis(values, order, axis=0), np.take_along_axis(broadcast_weights, order, axis=0)


def _weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weighted mean of values (M, ...) over the members; infinite values must have weight 0."""
    values, weights = _sorted_by_value(values, weights)
    # Averaging the offsets from the smallest value leaves equal values, or a single value, exactly unchanged.
    offsets = np.where(np.isfinite(values), values - values[0], 0.0)
    return np.asarray(values[0] + (weights * offsets).sum(axis=0) / weights.sum(axis=0))


def _weighted_median(values: FloatArray, weights: FloatArray | BoolArray) -> FloatArray:
    """Return the weighted median of values (M, ...) over the members: in a tie, the mean of the two middle values.

    If all weights are 0, return the smallest value. Infinite values must have weight 0.
    """
    values, weights = _sorted_by_value(values, weights)
    cumulative = np.cumsum(weights, axis=0)
    half = cumulative[-1] / 2
    tolerance = 1e-9 * half  # a tie must be found in spite of the rounding of sums
    low = np.take_along_axis(values, (cumulative >= half - tolerance).argmax(axis=0)[None], axis=0)[0]
    high = np.take_along_axis(values, (cumulative > half + tolerance).argmax(axis=0)[None], axis=0)[0]
    return np.asarray((low + high) / 2)
