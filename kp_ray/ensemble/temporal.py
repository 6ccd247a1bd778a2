"""Fill and smooth the predictions of a clip (the frames of one scene and camera) over time."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray

_CUTOFF_SIGMAS = 3.0  # a frame beyond three sigmas would have less than 0.012 of the central frame's weight


def frame_numbers(frames: Sequence[int | None]) -> FloatArray:
    """Convert frame numbers (N,) to floats; None and negative numbers, which mean no frame number, become NaN."""
    numbers = np.array(frames, dtype=float)
    numbers[numbers < 0] = np.nan
    return numbers


def count_fallbacks(fallback_names: Iterable[str], near_frame: str = "near frame") -> dict[str, int]:
    """Count the images per kind of fallback.

    Args:
        fallback_names: the fallback of each image, as `fill_missing` and `fusion.Fusion` name it; "" is not counted.
        near_frame: key under which all fallbacks "frame <number>" are counted together.
    """
    return dict(Counter(re.sub(r"^frame \d+$", near_frame, fallback) for fallback in fallback_names if fallback))


def fill_missing(
    keypoints: FloatArray,
    found: BoolArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    mean_pose: FloatArray | None = None,
) -> tuple[FloatArray, list[str]]:
    """Fill every image in which nobody was found; the filled keypoints have score 0.

    An image is filled from the first of these that exists:

    1. the nearest frame of the same clip in which someone was found; of two equally near frames, the earlier,
    2. the mean pose of all found people,
    3. `mean_pose`.

    Args:
        keypoints: (N, K, 3) x, y, score in pixels; ignored where `found` is False.
        found: (N,) True where a person was found.
        scenes, cameras, frames: (N,) scene, camera and frame number of each image; an image with frame None or -1
            belongs to no clip.
        mean_pose: (K, 2) in pixels.

    Returns:
        A new array of the filled keypoints (N, K, 3), and the fallback of each image: "" (none), "frame <number>" or
        "mean pose".

    Raises:
        DataError: nobody was found in any image, and `mean_pose` is None or not finite; or the keypoints of a found
            person are not finite.
        ValueError: the arguments have different lengths.
    """
    found = np.asarray(found, dtype=bool)
    if not len(keypoints) == len(found) == len(scenes) == len(cameras) == len(frames):
        raise ValueError("keypoints, found, scenes, cameras and frames must be equally long")
    filled, fallback_names = np.array(keypoints, dtype=float), [""] * len(found)
    if not np.isfinite(filled[found]).all():
        raise DataError("predictions: a keypoint of a found person is not finite: predict again")
    numbers = frame_numbers(frames)
    # Each clip's rows are sorted by frame number, so argmin takes the earlier of two equally near frames.
    found_rows = rows_by_clip(scenes, cameras, numbers, found)
    pose = None if found.all() else _mean_pose(filled[found], mean_pose)
    for row in np.flatnonzero(~found).tolist():
        neighbours = found_rows.get((scenes[row], cameras[row]))
        if neighbours is not None and np.isfinite(numbers[row]):
            nearest = neighbours[np.abs(numbers[neighbours] - numbers[row]).argmin()]
            filled[row], fallback_names[row] = filled[nearest], f"frame {int(numbers[nearest])}"
        else:
            filled[row, :, :2], fallback_names[row] = pose, "mean pose"
        filled[row, :, 2] = 0
    return filled, fallback_names


def smooth_clips(
    keypoints: FloatArray,
    found: BoolArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    sigma_frames: float,
) -> FloatArray:
    """Smooth every found person's points over the neighbouring frames of the clip.

    Each coordinate is fitted by local linear regression over the frame number with Gaussian weights. This leaves linear
    motion unchanged, even at the ends of a clip, where a moving average would lag. Frames in which nobody was found and
    images without a frame number are neither used nor changed.

    Args:
        keypoints: (N, K, 3) x, y, score in pixels, all finite; the scores are not smoothed.
        found: (N,) True where a person was found.
        scenes, cameras, frames: (N,) scene, camera and frame number of each image.
        sigma_frames: standard deviation of the Gaussian in frames; frames beyond three sigmas are not used.

    Returns:
        A new array of the smoothed keypoints (N, K, 3).
    """
    if not sigma_frames > 0:
        raise ValueError(f"sigma_frames: must be positive (got {sigma_frames})")
    smoothed = np.array(keypoints, dtype=float)
    numbers = frame_numbers(frames)
    for rows in rows_by_clip(scenes, cameras, numbers, found).values():
        for row in rows.tolist():
            near_rows = rows[np.abs(numbers[rows] - numbers[row]) <= _CUTOFF_SIGMAS * sigma_frames]
            offsets = numbers[near_rows] - numbers[row]
            gaussian = np.exp(-0.5 * (offsets / sigma_frames) ** 2)
            mean_offset = (gaussian * offsets).sum() / gaussian.sum()
            sum_of_squares = (gaussian * (offsets - mean_offset) ** 2).sum()
            # The fitted line's value at this frame (offset 0) is the weighted mean plus the slope times -mean_offset;
            # both are weighted sums of the near frames' coordinates.
            slope_weights = (
                -mean_offset * (offsets - mean_offset) / sum_of_squares
                if sum_of_squares > 0
                else np.zeros(len(near_rows))
            )
            weights = gaussian * (1 / gaussian.sum() + slope_weights)
            smoothed[row, :, :2] = np.tensordot(weights, keypoints[near_rows, :, :2], axes=1)
    return smoothed


def rows_by_clip(
    scenes: Sequence[str], cameras: Sequence[str], numbers: FloatArray, found: BoolArray
) -> dict[tuple[str, str], npt.NDArray[np.intp]]:
    """Return the indices of the images in which someone was found, per clip (scene, camera), sorted by frame number.

    Images without a frame number belong to no clip.
    """
    rows: dict[tuple[str, str], list[int]] = {}
    for row in np.argsort(numbers, kind="stable").tolist():
        if found[row] and np.isfinite(numbers[row]):
            rows.setdefault((scenes[row], cameras[row]), []).append(row)
    return {clip: np.array(clip_rows) for clip, clip_rows in rows.items()}


def _mean_pose(people: FloatArray, fallback: FloatArray | None) -> FloatArray:
    """Return the mean pose (K, 2) of P people (P, K, 3); `fallback` if P is 0."""
    if len(people):
        return np.asarray(people[..., :2].mean(axis=0))
    if fallback is None:
        raise DataError(
            "predictions: nobody was found in any image: lower predict.score_threshold and "
            "predict.fallback_threshold, or train longer"
        )
    if not np.isfinite(fallback).all():
        raise DataError("mean_pose: a number is not finite: give a pose with every keypoint")
    return fallback
