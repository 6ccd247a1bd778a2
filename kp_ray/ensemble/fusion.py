"""Several models' predictions -> one: choose the person, mask who found nobody, combine, fill, smooth.

Coordinates are OpenCV pixel indices. Fusing does not depend on the order of the members, to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kp_ray.ensemble.temporal import fill_missing, smooth_clips
from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray

SCALE_FLOOR_PX = 2.0
"""Smallest robust sigma: members that differ by a few pixels agree, however closely the others coincide."""
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
Method = Literal["mean", "median", "score"]


@dataclass(frozen=True)
class Fusion:
    """What `fuse_clips` made of N images.

    Attributes:
        keypoints: (N, K, 3) x, y, score in pixels; finite everywhere.
        found: (N,) whether some member was sure of a person.
        how: where the points of each row came from: "" (members that were sure), "low score" (members that were not),
            "frame <number>" and "mean pose" (see `fill_missing`), or "zeros".
        rejected: (M,) how many points of each member were dropped as outliers.
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
    """One prediction an image of M members' for N images, whatever it takes: the fallbacks are told in `how`.

    Members sure of a person are fused; where none is, those that are not; where nobody found anyone, `missing` decides
    between `fill_missing` and zeros. Then `smooth_clips`.

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; anything where the person's score is 0.
        scores: (M, N) of the persons, 0 where a member found nobody.
        scenes, cameras, frames: (N,) of the images.
        thresholds: of the person's score: sure, and unsure.
        method, weights, reject_sigmas: as in `fuse`; the persons' scores go into method "score".
        mean_pose: (K, 2), as in `fill_missing`.
        smooth_frames: None does not smooth.

    Raises:
        DataError: as `fuse` and `fill_missing`.
    """
    found, sure = select_detections(scores, thresholds)
    points, seen = fuse(
        keypoints, found, method=method, person_scores=scores, weights=weights, reject_sigmas=reject_sigmas
    )
    before, after = (participants(keypoints, found, weights, sigmas) for sigmas in (None, reject_sigmas))
    rejected = (before & ~after).sum(axis=(1, 2))
    if missing == "zeros":
        points, how = np.where(seen[:, None, None], points, 0.0), ["" if one else "zeros" for one in seen.tolist()]
    else:
        points, how = fill_missing(points, seen, scenes, cameras, frames, mean_pose=mean_pose)
    if smooth_frames is not None:
        points = smooth_clips(points, seen, scenes, cameras, frames, smooth_frames)
    how = ["low score" if low else note for low, note in zip((seen & ~sure).tolist(), how, strict=True)]
    return Fusion(points, sure, how, rejected.tolist())


def select_detections(scores: FloatArray, thresholds: tuple[float, float]) -> tuple[BoolArray, BoolArray]:
    """Whose person counts (M, N): of the members that are sure, or, where none is, of those that are not.

    Args:
        scores: (M, N) of the persons, 0 where a member found nobody.
        thresholds: of the score: sure, and unsure.

    Returns:
        That, and in which images (N,) some member is sure.
    """
    sure, unsure = ((scores >= threshold) & (scores > 0) for threshold in thresholds)
    some_sure = np.asarray(sure.any(axis=0))
    return np.where(some_sure, sure, sure | unsure), some_sure


def fuse(
    keypoints: FloatArray,
    found: BoolArray,
    *,
    method: Method = "mean",
    person_scores: FloatArray | None = None,
    weights: FloatArray | None = None,
    reject_sigmas: float | None = None,
) -> tuple[FloatArray, BoolArray]:
    """One prediction an image out of those of M members.

    A member that found nobody in an image takes no part in it. Of the others, those farther from the members' median
    than `reject_sigmas` robust sigmas are dropped, point by point (see `inliers`). The rest is combined column by
    column, the scores like the coordinates.

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; anything, also NaN, where `found` is False.
        found: (M, N) whether a member found a person in an image.
        method: weighted mean, weighted median, or mean weighted by keypoint score * person score as well.
        person_scores: (M, N) not negative, for method "score"; None: 1.
        weights: (M,) or (M, K), not negative; None: equal. A member with weight 0 counts only where none with
            weight found someone.
        reject_sigmas: None keeps every point.

    Returns:
        keypoints (N, K, 3), NaN where no member found anyone, and found (N,). Where one member alone found someone,
        its answer unchanged.

    Raises:
        DataError: a found person has a number that is not finite, or a score or weight is negative or not finite.
        ValueError: shapes do not fit, or the method is unknown.
    """
    if method not in ("mean", "median", "score"):
        raise ValueError(f"method {method!r} is not one of mean, median, score")
    keypoints, found = np.asarray(keypoints, dtype=float), np.asarray(found, dtype=bool)
    _check_members(keypoints, found)
    shares = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    taking_part = participants(keypoints, found, weights, reject_sigmas)
    if method == "score":
        persons = np.ones(found.shape) if person_scores is None else np.asarray(person_scores, dtype=float)
        scores = np.where(found[..., None], persons[..., None] * keypoints[..., 2], 0.0)
        _check_weights("scores", scores)
        shares = shares * scores
    shares = np.where(taking_part, shares, 0.0)
    # Members whose weights are all zero count equally.
    shares = np.where(shares.any(axis=0), shares, taking_part)

    combine = _weighted_median if method == "median" else _weighted_mean
    found_by_any = np.asarray(found.any(axis=0))
    fused = np.full(keypoints.shape[1:], np.nan)
    fused[found_by_any] = combine(
        np.where(taking_part[..., None], keypoints, np.inf)[:, found_by_any], shares[:, found_by_any, :, None]
    )
    return fused, found_by_any


def inliers(points: FloatArray, reject_sigmas: float) -> BoolArray:
    """Which members' points (M, N, K) stand near enough to the others'.

    The distance of each point from the members' per-coordinate median is compared with a robust sigma: 1.4826 times
    the median of those distances (the MAD of a normal distribution), at least `SCALE_FLOOR_PX`. The nearer half is
    always kept. With fewer than three members there is no majority, so nothing is rejected.

    Args:
        points: (M, N, K, 2+) x, y in pixels; NaN takes no part and is no inlier.
        reject_sigmas: positive.
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
        raise DataError(f"member {member}: row {row}: a number of the person found is not finite: predict it again")


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
    """Which points (M, N, K) are combined: of members that found someone, have weight and are not rejected."""
    shares = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    present = np.broadcast_to(found[:, :, None], shares.shape)
    taking_part = _unless_none_left(present & (shares > 0), present)
    if reject_sigmas is None:
        return taking_part
    return inliers(np.where(taking_part[..., None], keypoints, np.nan), reject_sigmas)


def _unless_none_left(chosen: BoolArray, otherwise: BoolArray) -> BoolArray:
    return np.asarray(np.where(chosen.any(axis=0), chosen, otherwise))


def _sorted_by_value(values: FloatArray, weights: FloatArray | BoolArray) -> tuple[FloatArray, FloatArray]:
    """Values (M, ...) in rising order, infinite ones last, with their weights: the members' order leaves no trace."""
    shares = np.broadcast_to(np.asarray(weights, dtype=float), values.shape)
    order = np.lexsort((shares, values), axis=0)
    return np.take_along_axis(values, order, axis=0), np.take_along_axis(shares, order, axis=0)


def _weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    values, weights = _sorted_by_value(values, weights)
    # Measured from the smallest value, so that equal values, or a single one, come out unchanged.
    offsets = np.where(np.isfinite(values), values - values[0], 0.0)
    return np.asarray(values[0] + (weights * offsets).sum(axis=0) / weights.sum(axis=0))


def _weighted_median(values: FloatArray, weights: FloatArray | BoolArray) -> FloatArray:
    """Where half the weight lies on either side, the middle of two values if the halves are equal; no weight: inf."""
    values, weights = _sorted_by_value(values, weights)
    reached = np.cumsum(weights, axis=0)
    half = reached[-1] / 2
    tolerance = 1e-9 * half
    low = np.take_along_axis(values, (reached >= half - tolerance).argmax(axis=0)[None], axis=0)[0]
    high = np.take_along_axis(values, (reached > half + tolerance).argmax(axis=0)[None], axis=0)[0]
    return np.asarray((low + high) / 2)
