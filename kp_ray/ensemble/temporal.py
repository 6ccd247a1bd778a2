"""Fill and smooth the images of a clip (the frames of one scene and camera) from its other frames."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray

_REACH_SIGMAS = 3.0  # a Gaussian's weight is below 0.012 beyond it


def frame_numbers(frames: Sequence[int | None]) -> FloatArray:
    """Convert frame numbers (N,) to floats, NaN for an image without one (None or negative)."""
    numbers = np.array(frames, dtype=float)
    numbers[numbers < 0] = np.nan
    return numbers


def fill_missing(
    keypoints: FloatArray,
    found: BoolArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    mean_pose: FloatArray | None = None,
) -> tuple[FloatArray, list[str]]:
    """Fill every image in which nobody was found with the most plausible keypoints, with score 0.

    They are taken from the nearest frame of the same clip in which someone was found (of two equally near frames, the
    earlier); if the clip has none, from the mean of all found people; if there are none at all, from `mean_pose`.

    Args:
        keypoints: (N, K, 3) x, y, score in pixels; anything where `found` is False.
        found: (N,) whether a person was found.
        scenes, cameras, frames: (N,) of the images; an image with frame None or -1 has no neighbours.
        mean_pose: (K, 2) in pixels.

    Returns:
        keypoints (N, K, 3), a copy; and N texts that name the source of each image's points: "" (found),
        "frame <number>" or "mean pose".

    Raises:
        DataError: nobody was found in any image and there is no `mean_pose`, or a number to fill from is not finite.
        ValueError: lengths differ.
    """
    found = np.asarray(found, dtype=bool)
    if not len(keypoints) == len(found) == len(scenes) == len(cameras) == len(frames):
        raise ValueError("keypoints, found, scenes, cameras and frames must be equally long")
    filled, how = np.array(keypoints, dtype=float), [""] * len(found)
    if not np.isfinite(filled[found]).all():
        raise DataError("predictions: a person that was found has a number that is not finite: predict again")
    numbers = frame_numbers(frames)
    # Sorted by frame number, so argmin takes the earlier of two equally near frames.
    candidates = rows_by_clip(scenes, cameras, numbers, found)
    pose = None if found.all() else _mean_pose(filled[found], mean_pose)
    for row in np.flatnonzero(~found).tolist():
        neighbours = candidates.get((scenes[row], cameras[row]))
        if neighbours is not None and np.isfinite(numbers[row]):
            nearest = neighbours[np.abs(numbers[neighbours] - numbers[row]).argmin()]
            filled[row], how[row] = filled[nearest], f"frame {int(numbers[nearest])}"
        else:
            filled[row, :, :2], how[row] = pose, "mean pose"
        filled[row, :, 2] = 0
    return filled, how


def smooth_clips(
    keypoints: FloatArray,
    found: BoolArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    sigma_frames: float,
) -> FloatArray:
    """Smooth every found person's points over the near frames of the clip.

    Each coordinate is fitted by local linear regression over the frame number with Gaussian weights. Linear motion is
    unchanged, also at a clip's ends, where a moving average would lag. Frames in which nobody was found, and images
    without a frame number, are neither used nor changed.

    Args:
        keypoints: (N, K, 3) x, y, score in pixels, finite; the scores are not smoothed.
        found: (N,) whether a person was found.
        scenes, cameras, frames: (N,) of the images.
        sigma_frames: standard deviation of the Gaussian in frame numbers; it is cut at three sigmas.

    Returns:
        (N, K, 3), a copy.
    """
    if not sigma_frames > 0:
        raise ValueError(f"sigma_frames must be positive, got {sigma_frames}")
    smoothed = np.array(keypoints, dtype=float)
    numbers = frame_numbers(frames)
    for rows in rows_by_clip(scenes, cameras, numbers, found).values():
        for row in rows.tolist():
            near = rows[np.abs(numbers[rows] - numbers[row]) <= _REACH_SIGMAS * sigma_frames]
            offsets = numbers[near] - numbers[row]
            shares = np.exp(-0.5 * (offsets / sigma_frames) ** 2)
            centre = (shares * offsets).sum() / shares.sum()
            spread = (shares * (offsets - centre) ** 2).sum()
            # The fitted line's value at this frame, written as weights of the near frames.
            tilt = -centre * (offsets - centre) / spread if spread > 0 else np.zeros(len(near))
            smoothed[row, :, :2] = np.tensordot(shares * (1 / shares.sum() + tilt), keypoints[near, :, :2], axes=1)
    return smoothed


def rows_by_clip(
    scenes: Sequence[str], cameras: Sequence[str], numbers: FloatArray, found: BoolArray
) -> dict[tuple[str, str], npt.NDArray[np.intp]]:
    """Group the rows in which someone was found by (scene, camera), by rising frame number.

    Images without a frame number belong to no clip.
    """
    rows_of_clip: dict[tuple[str, str], list[int]] = {}
    for row in np.argsort(numbers, kind="stable").tolist():
        if found[row] and np.isfinite(numbers[row]):
            rows_of_clip.setdefault((scenes[row], cameras[row]), []).append(row)
    return {clip: np.array(rows) for clip, rows in rows_of_clip.items()}


def _mean_pose(people: FloatArray, fallback: FloatArray | None) -> FloatArray:
    if len(people):
        return np.asarray(people[..., :2].mean(axis=0))
    if fallback is None:
        raise DataError(
            "nobody was found in any image: lower predict.score_threshold and predict.fallback_threshold, "
            "or train longer"
        )
    if not np.isfinite(fallback).all():
        raise DataError("mean_pose: a number is not finite: give a pose with every keypoint")
    return fallback
