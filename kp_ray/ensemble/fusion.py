"""Fuse several members' predictions of the same images into one per image.

Members that found nobody are left out, outliers are rejected, the rest is averaged; missing images are filled and clips
smoothed. Coordinates are OpenCV pixel indices. The result is bit-identical for any order of the members.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kp_ray.ensemble.temporal import fill_missing, smooth_clips
from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray

SCALE_FLOOR_PX = 2.0
"""Smallest robust sigma in pixels: a member a few pixels off is no outlier, however closely the others agree."""
_MAD_TO_SIGMA = 1.4826
"""Ratio of standard deviation to MAD for a normal distribution."""
Method = Literal["mean", "median", "score"]


@dataclass(frozen=True, eq=False)
class Fusion:
    """The fused predictions of N images.

    Attributes:
        keypoints: (N, K, 3) x, y, score in pixels; finite everywhere.
        found: (N,) True where a member found a person that scores at least the upper threshold.
        how: N texts that name the source of each image's points: "" (members that score at least the upper
            threshold), "low score" (members between the thresholds), "frame <number>" or "mean pose" (see
            `fill_missing`), or "zeros".
        rejected: (M,) number of points of each member that were dropped as outliers.
    """

    keypoints: FloatArray
    found: BoolArray
    how: list[str]
    rejected: list[int]


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
    """Fuse M members' predictions into one per image; fallbacks are reported in `how`.

    An image's points come from the first of these sources that has any; then clips are smoothed:

    1. members whose person scores at least the upper threshold,
    2. members whose person scores at least the lower threshold,
    3. `fill_missing`, or zeros, as `missing` says.

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; any values where the person's score is 0.
        scores: (M, N) of the persons, 0 where a member found nobody.
        scenes, cameras, frames: (N,) of the images.
        thresholds: upper and lower threshold of the person's score.
        method, weights, reject_sigmas: as in `fuse`; method "score" uses the persons' scores.
        missing: "fill" or "zeros".
        mean_pose: (K, 2), as in `fill_missing`.
        smooth_frames: `sigma_frames` of `smooth_clips`; None does not smooth.

    Raises:
        DataError: as `fuse` and `fill_missing`.
    """
    selected, has_high_score = select_detections(scores, thresholds)
    points, found = fuse(
        keypoints, selected, method=method, person_scores=scores, weights=weights, reject_sigmas=reject_sigmas
    )
    points_before_rejection, points_kept = (
        participants(keypoints, selected, weights, sigmas) for sigmas in (None, reject_sigmas)
    )
    rejected = (points_before_rejection & ~points_kept).sum(axis=(1, 2))
    if missing == "zeros":
        points = np.where(found[:, None, None], points, 0.0)
        how = ["" if was_found else "zeros" for was_found in found.tolist()]
    else:
        points, how = fill_missing(points, found, scenes, cameras, frames, mean_pose=mean_pose)
    if smooth_frames is not None:
        points = smooth_clips(points, found, scenes, cameras, frames, smooth_frames)
    is_low = (found & ~has_high_score).tolist()
    how = ["low score" if low else source for low, source in zip(is_low, how, strict=True)]
    return Fusion(points, has_high_score, how, rejected.tolist())


def select_detections(scores: FloatArray, thresholds: tuple[float, float]) -> tuple[BoolArray, BoolArray]:
    """Select the persons to fuse: scores of at least the upper threshold or, in an image without any, the lower.

    Args:
        scores: (M, N) of the persons, 0 where a member found nobody.
        thresholds: upper and lower threshold of the score.

    Returns:
        The selection (M, N), and the images (N,) in which a score reaches the upper threshold.
    """
    high, low = ((scores >= threshold) & (scores > 0) for threshold in thresholds)
    any_high = np.asarray(high.any(axis=0))
    return np.where(any_high, high, high | low), any_high


def fuse(
    keypoints: FloatArray,
    found: BoolArray,
    *,
    method: Method = "mean",
    person_scores: FloatArray | None = None,
    weights: FloatArray | None = None,
    reject_sigmas: float | None = None,
) -> tuple[FloatArray, BoolArray]:
    """Fuse M members' predictions into one per image, NaN where no member found anyone.

    A member that found nobody in an image is left out there. Points farther from the members' median than
    `reject_sigmas` robust sigmas are dropped (see `inliers`). The rest is combined column by column, the scores like
    the coordinates.

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; any values, also NaN, where `found` is False.
        found: (M, N) True where a member found a person in an image.
        method: "mean", weighted; "median", weighted; "score", mean weighted by keypoint score * person score as well.
        person_scores: (M, N) not negative, for method "score"; None: 1.
        weights: (M,) or (M, K), not negative; None: equal. A member with weight 0 counts only where no member with
            weight found someone.
        reject_sigmas: None keeps every point.

    Returns:
        keypoints (N, K, 3), and found (N,). Where a single member found someone, its keypoints unchanged.

    Raises:
        DataError: a found person has a number that is not finite, or a score or weight is negative or not finite.
        ValueError: shapes do not fit, or the method is unknown.
    """
    if method not in ("mean", "median", "score"):
        raise ValueError(f"method {method!r} is not one of mean, median, score")
    keypoints, found = np.asarray(keypoints, dtype=float), np.asarray(found, dtype=bool)
    _check_members(keypoints, found)
    point_weights = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    is_used = participants(keypoints, found, weights, reject_sigmas)
    if method == "score":
        persons = np.ones(found.shape) if person_scores is None else np.asarray(person_scores, dtype=float)
        scores = np.where(found[..., None], persons[..., None] * keypoints[..., 2], 0.0)
        _check_weights("scores", scores)
        point_weights = point_weights * scores
    point_weights = np.where(is_used, point_weights, 0.0)
    # Where all weights are zero, members count equally.
    point_weights = np.where(point_weights.any(axis=0), point_weights, is_used)

    combine = _weighted_median if method == "median" else _weighted_mean
    found_by_any = np.asarray(found.any(axis=0))
    fused = np.full(keypoints.shape[1:], np.nan)
    fused[found_by_any] = combine(
        np.where(is_used[..., None], keypoints, np.inf)[:, found_by_any], point_weights[:, found_by_any, :, None]
    )
    return fused, found_by_any


def inliers(points: FloatArray, reject_sigmas: float) -> BoolArray:
    """Find the members' points (M, N, K) that are no outliers.

    The distance of each point from the members' per-coordinate median is compared with a robust sigma of at least
    `SCALE_FLOOR_PX`: 1.4826 * MAD, where the MAD is the median of those distances; this estimates the sigma of a normal
    distribution. The nearer half is always kept. With fewer than three members there is no majority, so nothing is
    rejected.

    Args:
        points: (M, N, K, 2+) x, y in pixels; NaN is ignored and is no inlier.
        reject_sigmas: number of robust sigmas beyond which a point is an outlier; positive.
    """
    if not reject_sigmas > 0:
        raise ValueError(f"reject_sigmas must be positive, got {reject_sigmas}")
    present = np.isfinite(points[..., 0])
    xy = points[..., :2]
    centre = _weighted_median(np.where(present[..., None], xy, np.inf), present[..., None])
    distances = np.linalg.norm(xy - centre, axis=-1)
    typical = _weighted_median(np.where(present, distances, np.inf), present)
    limit = np.maximum(reject_sigmas * np.maximum(_MAD_TO_SIGMA * typical, SCALE_FLOOR_PX), typical)
    return np.asarray(present & ((distances <= limit) | (present.sum(axis=0) < 3)))


def _check_members(keypoints: FloatArray, found: BoolArray) -> None:
    if keypoints.ndim != 4 or keypoints.shape[-1] != 3 or not len(keypoints) or found.shape != keypoints.shape[:2]:
        raise ValueError(f"keypoints {keypoints.shape} must be (M, N, K, 3), M > 0, and found {found.shape} (M, N)")
    wrong = np.argwhere(found & ~np.isfinite(keypoints).all(axis=(2, 3)))
    if len(wrong):
        member, row = wrong[0]
        raise DataError(f"member {member}: row {row}: a number of a person that was found is not finite: predict again")


def _check_weights(name: str, values: FloatArray) -> None:
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise DataError(f"{name}: every value must be finite and not negative")


def _member_weights(weights: FloatArray | None, keypoints: FloatArray) -> FloatArray:
    num_members, _, num_keypoints, _ = keypoints.shape
    given = np.ones(num_members) if weights is None else np.asarray(weights, dtype=float)
    if given.shape not in ((num_members,), (num_members, num_keypoints)):
        raise ValueError(f"weights {given.shape} must be ({num_members},) or ({num_members}, {num_keypoints})")
    _check_weights("weights", given)
    return given.reshape(num_members, 1, -1)


def participants(
    keypoints: FloatArray, found: BoolArray, weights: FloatArray | None, reject_sigmas: float | None
) -> BoolArray:
    """Find the points (M, N, K) to combine: of members that found someone, have weight and are not rejected."""
    point_weights = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    present = np.broadcast_to(found[:, :, None], point_weights.shape)
    weighted = present & (point_weights > 0)
    is_used = np.asarray(np.where(weighted.any(axis=0), weighted, present))
    if reject_sigmas is None:
        return is_used
    return inliers(np.where(is_used[..., None], keypoints, np.nan), reject_sigmas)


def _sorted_by_value(values: FloatArray, weights: FloatArray | BoolArray) -> tuple[FloatArray, FloatArray]:
    """Sort values (M, ...) over the members, infinite ones last, with their weights.

    Sums over sorted values round alike for any order of the members.
    """
    full_weights = np.broadcast_to(np.asarray(weights, dtype=float), values.shape)
    order = np.lexsort((full_weights, values), axis=0)
    return np.take_along_axis(values, order, axis=0), np.take_along_axis(full_weights, order, axis=0)


def _weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    values, weights = _sorted_by_value(values, weights)
    # Offsets from the smallest value: equal values, or a single one, come out unchanged.
    offsets = np.where(np.isfinite(values), values - values[0], 0.0)
    return np.asarray(values[0] + (weights * offsets).sum(axis=0) / weights.sum(axis=0))


def _weighted_median(values: FloatArray, weights: FloatArray | BoolArray) -> FloatArray:
    """Return the value with half the weight on either side; of two such values the middle; without weight, inf."""
    values, weights = _sorted_by_value(values, weights)
    reached = np.cumsum(weights, axis=0)
    half = reached[-1] / 2
    tolerance = 1e-9 * half
    low = np.take_along_axis(values, (reached >= half - tolerance).argmax(axis=0)[None], axis=0)[0]
    high = np.take_along_axis(values, (reached > half + tolerance).argmax(axis=0)[None], axis=0)[0]
    return np.asarray((low + high) / 2)
