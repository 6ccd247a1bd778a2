"""Several models' predictions -> one: mask who found nobody, reject outliers, combine, fill what nobody found.

Coordinates are OpenCV pixel indices. Nothing here depends on the order of the members, to the last bit.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from kp_ray.config import InputError
from kp_ray.keypoints import FloatArray

BoolArray = npt.NDArray[np.bool_]

SCALE_FLOOR_PX = 2.0
"""Smallest robust sigma: members that differ by a few pixels agree, however closely the others coincide."""
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


def fuse(
    keypoints: FloatArray,
    found: BoolArray,
    *,
    method: Literal["mean", "median", "score"] = "mean",
    person_scores: FloatArray | None = None,
    weights: FloatArray | None = None,
    reject_sigmas: float | None = 3.0,
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
        InputError: a found person has a number that is not finite, or a score or weight is negative or not finite.
        ValueError: shapes do not fit, or the method is unknown.
    """
    if method not in ("mean", "median", "score"):
        raise ValueError(f"method {method!r} is not one of mean, median, score")
    keypoints, found = np.asarray(keypoints, dtype=float), np.asarray(found, dtype=bool)
    _check_members(keypoints, found)
    shares = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    taking_part = np.broadcast_to(found[:, :, None], shares.shape)
    taking_part = _unless_none_left(taking_part & (shares > 0), taking_part)
    points = np.where(taking_part[..., None], keypoints, np.nan)
    if reject_sigmas is not None:
        taking_part = inliers(points, reject_sigmas)
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


def fill_missing(
    keypoints: FloatArray,
    found: BoolArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    mean_pose: FloatArray | None = None,
) -> tuple[FloatArray, list[str]]:
    """Give every image in which nobody was found the most plausible keypoints, with score 0.

    From the nearest found frame of the same clip (scene and camera; of two equally near, the earlier); if the clip has
    none, the mean of all found people; if there are none at all, `mean_pose`.

    Args:
        keypoints: (N, K, 3) x, y, score in pixels; anything where `found` is False.
        found: (N,).
        scenes, cameras, frames: (N,) of the images; a frame None has no neighbours.
        mean_pose: (K, 2) in pixels.

    Returns:
        keypoints (N, K, 3), a copy; and for each row where its points came from: "" (found), "frame <number>",
        "mean pose".

    Raises:
        InputError: nobody was found in any image and there is no `mean_pose`, or what to fill from is not finite.
        ValueError: lengths differ.
    """
    found = np.asarray(found, dtype=bool)
    if not len(keypoints) == len(found) == len(scenes) == len(cameras) == len(frames):
        raise ValueError("keypoints, found, scenes, cameras and frames must be equally long")
    filled, notes = np.array(keypoints, dtype=float), [""] * len(found)
    if not np.isfinite(filled[found]).all():
        raise InputError("predictions: a person that was found has a number that is not finite: predict again")
    numbers = np.array(frames, dtype=float)  # None becomes NaN
    # By frame number, so that of two equally near rows argmin takes the earlier.
    by_frame = [row for row in np.argsort(numbers, kind="stable").tolist() if found[row] and np.isfinite(numbers[row])]
    rows_of_clip: dict[tuple[str, str], list[int]] = {}
    for row in by_frame:
        rows_of_clip.setdefault((scenes[row], cameras[row]), []).append(row)
    candidates = {clip: np.array(rows) for clip, rows in rows_of_clip.items()}
    pose = None if found.all() else _mean_pose(filled[found], mean_pose)
    for row in np.flatnonzero(~found).tolist():
        neighbours = candidates.get((scenes[row], cameras[row]))
        if neighbours is not None and np.isfinite(numbers[row]):
            nearest = neighbours[np.abs(numbers[neighbours] - numbers[row]).argmin()]
            filled[row], notes[row] = filled[nearest], f"frame {int(numbers[nearest])}"
        else:
            filled[row, :, :2], notes[row] = pose, "mean pose"
        filled[row, :, 2] = 0
    return filled, notes


def _mean_pose(people: FloatArray, otherwise: FloatArray | None) -> FloatArray:
    if len(people):
        return np.asarray(people[..., :2].mean(axis=0))
    if otherwise is None:
        raise InputError(
            "nobody found in any image: lower predict.score_threshold and predict.fallback_threshold, or train longer"
        )
    if not np.isfinite(otherwise).all():
        raise InputError("mean pose: a keypoint has no place: give a pose with every keypoint")
    return otherwise


def _check_members(keypoints: FloatArray, found: BoolArray) -> None:
    if keypoints.ndim != 4 or keypoints.shape[-1] != 3 or not len(keypoints) or found.shape != keypoints.shape[:2]:
        raise ValueError(f"keypoints {keypoints.shape} must be (M, N, K, 3), M > 0, and found {found.shape} (M, N)")
    wrong = np.argwhere(found & ~np.isfinite(keypoints).all(axis=(2, 3)))
    if len(wrong):
        member, row = wrong[0]
        raise InputError(f"member {member}: row {row}: a number of the person found is not finite: predict it again")


def _check_weights(name: str, values: FloatArray) -> None:
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError(f"{name}: every value must be finite and not negative")


def _member_weights(weights: FloatArray | None, keypoints: FloatArray) -> FloatArray:
    num_members, _, num_keypoints, _ = keypoints.shape
    given = np.ones(num_members) if weights is None else np.asarray(weights, dtype=float)
    if given.shape not in ((num_members,), (num_members, num_keypoints)):
        raise ValueError(f"weights {given.shape} must be ({num_members},) or ({num_members}, {num_keypoints})")
    _check_weights("weights", given)
    return given.reshape(num_members, 1, -1)


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
