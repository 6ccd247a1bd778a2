"""Find labels that jump, or swap left and right, in one frame of a clip.

A deviation is the distance of a point, or of the whole person, from its place in the frames before and after, see
`ClipMotion`. A mismatch tells how badly a row fits what the other cameras show at a frame, see `_misplaced_rows`.

Lengths are in body sizes: square roots of the area of the box around the labelled points, so that thresholds hold
for every distance from the camera.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kp_ray.checks.findings import Finding, list_names, warning
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton

# The thresholds were chosen on 4195 real labels: 265 clips of 16 widely spaced frames, from 5 cameras. Leg raises and
# jumping jacks move a point by a whole body size in one frame and back in the next, so where at least two other cameras
# see the frame, these cameras decide.
_JUMP_FLOOR = 0.2
"""Deviation that a jump exceeds, in body sizes."""
_JUMP_RATIO = 3.0
"""A jump's deviation is more than this multiple of each of these: the distance between the neighbour frames, the median
deviation in the other cameras, and, for a single point, the person's deviation."""
_JUMP_RATIO_ALONE = 6.0
"""Where fewer than two other cameras see the frame, a jump's deviation is more than this multiple of the clip's median
deviation."""
LABEL_NOISE = 0.02
"""Inaccuracy of hand-made labels in body sizes; added to distances that may be 0."""
_SWAP_FLOOR = 0.25
"""Sum of a left and a right point's deviations, in body sizes, above which a swap is considered."""
_SWAP_RATIO = 0.35
"""A pair counts as swapped if swapping it back leaves less than this share of the sum of its deviations."""
_MISMATCH_FLOOR = 0.1
"""Mismatch of a row at its own frame, in body sizes, above which the row can hold another frame's points."""
_MISMATCH_RATIO = 3.0
"""A row holds another frame's points if its mismatch at its own frame is more than this multiple of a limit: the larger
of its mismatch at the best matching frame and the clip's median mismatch, plus `LABEL_NOISE / 2`."""
_MAX_REFERENCES = 64
"""Maximum number of frames with which each frame of a scene is compared; it bounds time and memory."""


@dataclass(frozen=True, eq=False)
class ClipMotion:
    """Motion of the person in a clip of T >= 3 frames, in body sizes.

    Column 0 of `deviation` and `neighbor_distance` is the person, column 1 + k is point k. Values are NaN where points
    are not labelled, and for points in the first and the last frame.

    Attributes:
        rows: T row numbers in the annotations.
        frames: T frame numbers, ascending.
        xy: (T, K, 2) points.
        body_px: the body size in pixels, the median over the clip.
        deviation: (T, 1 + K). The person's: median over the points of the distance to the nearer neighbour frame. A
            point's: distance to its position interpolated between the two neighbour frames.
        neighbor_distance: (T, 1 + K) distances between the two neighbour frames.
        swap_ratio: (T, P) per flip pair, the deviation of its two points after they are swapped, divided by the
            deviation before; 1 where the deviation is at most `_SWAP_FLOOR` or the pair is not labelled.
    """

    rows: list[int]
    frames: list[int]
    xy: FloatArray
    body_px: float
    deviation: FloatArray
    neighbor_distance: FloatArray
    swap_ratio: FloatArray


ClipKey = tuple[str, str]
"""Scene and camera."""


@dataclass(frozen=True, eq=False)
class MotionSuspect:
    """Labels of one image that do not fit the other frames of the clip, or the scene's other cameras.

    Attributes:
        row: row number in the annotations.
        kind: "person" if all points are concerned, "left_right" if pairs are swapped, "points" if single points jump.
        points: indices of the concerned keypoints; of a swapped pair, both.
        deviation_px: (1 + K) distances in pixels from the neighbour frames: the person's, then each point's.
        matching_frame: number of the frame whose points the row holds instead of its own; None if that is not known.
        strength: 1 or more: the largest ratio of a deviation to the limit that follows from `_JUMP_FLOOR` and
            `_JUMP_RATIO`; for swapped pairs, the ratio of `_SWAP_RATIO` to the smallest swap ratio.
    """

    row: int
    kind: Literal["person", "left_right", "points"]
    points: tuple[int, ...]
    deviation_px: FloatArray
    matching_frame: int | None
    strength: float


def motion_findings(annotations: Annotations) -> Iterator[Finding]:
    """Find jumps and swaps of left and right in single frames.

    A deviation that the scene's other cameras show at the same frame is motion of the person, not a finding.
    """
    names = annotations.skeleton.names
    for suspect in find_motion_suspects(annotations):
        image = annotations.images[suspect.row]
        if suspect.kind == "person":
            message = f"the person is {suspect.deviation_px[0]:.0f} px away from the frames before and after"
            if suspect.matching_frame is not None:
                message = (
                    "compared with the scene's other cameras, the points belong to another frame, e.g. frame "
                    f"{suspect.matching_frame}"
                )
            fix = "compare image and labels; correct the points, or drop the row if they belong to another image"
            yield warning("jump", image, message, fix)
        elif suspect.kind == "left_right":
            pairs = zip(suspect.points[::2], suspect.points[1::2], strict=True)
            pair_names = list_names([f"{names[a]}/{names[b]}" for a, b in pairs])
            message = f"compared with the frames before and after, left and right are exchanged: {pair_names}"
            yield warning("left_right", image, message, "exchange the two points of each pair")
        else:
            point_moves = list_names([f"{names[k]} by {suspect.deviation_px[1 + k]:.0f} px" for k in suspect.points])
            message = f"far from their place in the frames before and after: {point_moves}"
            yield warning("jump", image, message, "correct the points")


def find_motion_suspects(annotations: Annotations) -> Iterator[MotionSuspect]:
    """Find jumps and swaps of left and right in single frames, see `motion_findings`."""
    clips = _measure_clips(annotations)
    misplaced = _misplaced_rows(clips)
    clips_by_frame: dict[tuple[str, int], list[tuple[str, ClipMotion, int]]] = defaultdict(list)
    for (scene, camera), clip in clips.items():
        for t, frame in enumerate(clip.frames):
            clips_by_frame[scene, frame].append((camera, clip, t))
    for (scene, camera), clip in clips.items():
        typical_deviation = _median(clip.deviation, axis=0)
        for t, frame in enumerate(clip.frames):
            other_clips = [
                (other_clip, index) for name, other_clip, index in clips_by_frame[scene, frame] if name != camera
            ]
            jumps, swaps = _find_jumps_and_swaps(clip, t, other_clips, typical_deviation)
            yield from _frame_suspects(annotations.skeleton, clip, t, jumps, swaps, misplaced.get(clip.rows[t]))


def list_inner_rows(annotations: Annotations) -> set[int]:
    """Return the rows of frames that lie between two other frames of their clip, where every jump and swap shows."""
    return {row for clip in _measure_clips(annotations).values() for row in clip.rows[1:-1]}


def _measure_clips(annotations: Annotations) -> dict[ClipKey, ClipMotion]:
    """Measure every clip with at least three frames and a labelled person, unless two frames have the same number."""
    rows_by_clip: dict[ClipKey, list[int]] = defaultdict(list)
    keys = zip(annotations.scenes, annotations.cameras, strict=True)
    for row, (key, frame) in enumerate(zip(keys, annotations.frames, strict=True)):
        if frame >= 0:
            rows_by_clip[key].append(row)
    clips = {}
    for key, rows in rows_by_clip.items():
        rows.sort(key=lambda row: annotations.frames[row])
        frames = [annotations.frames[row] for row in rows]
        xy = annotations.keypoints[rows, :, :2]
        box_sizes = [np.ptp(points[np.isfinite(points[:, 0])], axis=0) for points in xy if np.isfinite(points).any()]
        body_px = float(np.median([math.sqrt(width * height) for width, height in box_sizes])) if box_sizes else 0.0
        if len(rows) >= 3 and body_px > 0 and len(set(frames)) == len(frames):
            clips[key] = _measure_clip(annotations.skeleton, rows, frames, body_px, xy / body_px)
    return clips


def _measure_clip(skeleton: Skeleton, rows: list[int], frames: list[int], body_px: float, xy: FloatArray) -> ClipMotion:
    """Measure one clip; `xy` is (T, K, 2) in body sizes."""
    before, middle, after = xy[:-2], xy[1:-1], xy[2:]
    times = np.array(frames, dtype=np.float64)
    time_fraction = ((times[1:-1] - times[:-2]) / (times[2:] - times[:-2]))[:, None, None]
    interpolated = before * (1 - time_fraction) + after * time_fraction
    point_deviation = np.linalg.norm(middle - interpolated, axis=2)
    point_distance = np.linalg.norm(after - before, axis=2)
    step = _median(np.linalg.norm(np.diff(xy, axis=0), axis=2), axis=1)
    # The first and the last frame have one neighbour: the step between this neighbour and the frame beyond it replaces
    # the distance between two neighbours.
    person_deviation = np.concatenate([step[:1], np.minimum(step[:-1], step[1:]), step[-1:]])
    person_distance = np.concatenate([step[1:2], _median(point_distance, axis=1), step[-2:-1]])
    flip = skeleton.flip_indices
    swapped_deviation = np.linalg.norm(middle[:, flip] - interpolated, axis=2)
    pair_deviation = point_deviation + point_deviation[:, flip]
    swapped_pair_deviation = swapped_deviation + swapped_deviation[:, flip]
    with np.errstate(invalid="ignore", divide="ignore"):
        swap_ratio = np.where(pair_deviation > _SWAP_FLOOR, swapped_pair_deviation / pair_deviation, 1.0)
    first_of_pair = [a for a, b in enumerate(flip) if a < b]
    return ClipMotion(
        rows,
        frames,
        xy,
        body_px,
        deviation=np.column_stack([person_deviation, _pad_ends(point_deviation)]),
        neighbor_distance=np.column_stack([person_distance, _pad_ends(point_distance)]),
        swap_ratio=_pad_ends(swap_ratio[:, first_of_pair]),
    )


def _pad_ends(values: FloatArray) -> FloatArray:
    """Add a row of NaN before the first and after the last row of (T - 2, ...) values."""
    return np.pad(values, ((1, 1), (0, 0)), constant_values=np.nan)


def _median(values: FloatArray, axis: int) -> FloatArray:
    """Compute the median of the values that are not NaN along an axis; NaN if there are none.

    np.nanmedian gives the same, but warns about slices without numbers.
    """
    ordered = np.sort(values, axis=axis)  # NaN last
    count = np.isfinite(ordered).sum(axis=axis, keepdims=True)
    low, high = (
        np.take_along_axis(ordered, index, axis)
        for index in (np.maximum(count - 1, 0) // 2, count // 2 % values.shape[axis])
    )
    return np.asarray(np.squeeze((low + high) / 2, axis=axis))


def _misplaced_rows(clips: Mapping[ClipKey, ClipMotion]) -> dict[int, int]:
    """Find rows that hold the points of another frame, by comparison with the scene's other cameras.

    All cameras see the same motion: the distances from one frame's pose to the poses of the other frames are nearly the
    same in every camera, up to a factor per camera. The medians of these distances over the other cameras are the
    frame's expected distances. A row's mismatch at a frame is the median difference between the row's distances and the
    frame's expected distances. A row with a large mismatch at its own frame and a small mismatch at another frame holds
    the points of the other frame. Scenes with fewer than three cameras or six frames are left out.

    Returns:
        The matching frame number by row number.
    """
    clips_by_scene: dict[str, list[ClipMotion]] = defaultdict(list)
    for (scene, _), clip in clips.items():
        clips_by_scene[scene].append(clip)
    misplaced: dict[int, int] = {}
    for scene_clips in clips_by_scene.values():
        frames = sorted({frame for clip in scene_clips for frame in clip.frames})
        if len(scene_clips) < 3 or len(frames) < 6:
            continue
        index = {frame: t for t, frame in enumerate(frames)}
        reference_frames = frames[:: -(-len(frames) // _MAX_REFERENCES)]
        reference_indices = [index[frame] for frame in reference_frames]
        distances = np.stack([_distances(clip, index, reference_frames) for clip in scene_clips])  # (cameras, T, R)
        for camera, clip in enumerate(scene_clips):
            expected = _median(np.delete(distances, camera, axis=0), axis=0)
            # Poses less than 0.05 body sizes apart are left out: label noise would decide the ratio of the distances.
            is_used = (expected > 0.05) & (distances[camera] > 0)
            scale = float(np.median(distances[camera][is_used] / expected[is_used])) if is_used.any() else 1.0
            scaled_distances = distances[camera] / scale
            frame_mismatch = _median(np.abs(scaled_distances - expected), axis=1)
            # Adding the noise keeps both limits above 0 where a frame matches exactly.
            clip_limit = float(_median(frame_mismatch, axis=0)) + LABEL_NOISE / 2
            for row, frame in zip(clip.rows, clip.frames, strict=True):
                t = index[frame]
                if not frame_mismatch[t] > max(_MISMATCH_FLOOR, _MISMATCH_RATIO * clip_limit):
                    continue
                reference_mismatch = _median(np.abs(scaled_distances[t] - expected[reference_indices]), axis=1)
                reference_mismatch = np.where(np.isnan(reference_mismatch), np.inf, reference_mismatch)
                if frame_mismatch[t] > _MISMATCH_RATIO * (reference_mismatch.min() + LABEL_NOISE / 2):
                    misplaced[row] = reference_frames[int(reference_mismatch.argmin())]
    return misplaced


def _distances(clip: ClipMotion, index: Mapping[int, int], reference_frames: Sequence[int]) -> FloatArray:
    """Compute the distances (T, R) between the clip's poses at T frames and at R reference frames.

    A distance is the median over the points; it is NaN for a frame that the clip lacks.

    Args:
        clip: the clip.
        index: frame number -> index of the frame, from 0 to T - 1.
        reference_frames: R of these frame numbers.
    """
    poses = np.full((len(index), *clip.xy[0].shape), np.nan)
    poses[[index[frame] for frame in clip.frames]] = clip.xy
    reference_poses = [poses[index[frame]] for frame in reference_frames]
    return np.stack([_median(np.linalg.norm(poses - pose, axis=2), axis=1) for pose in reference_poses], axis=1)


def _find_jumps_and_swaps(
    clip: ClipMotion, t: int, other_clips: Sequence[tuple[ClipMotion, int]], typical_deviation: FloatArray
) -> tuple[BoolArray, BoolArray]:
    """Find the points that jump and the pairs that are swapped in frame `t` of a clip.

    Args:
        clip: the clip.
        t: index of the frame in the clip.
        other_clips: the scene's clips from other cameras, each with its index of the same frame. They decide about the
            points that at least two of them show; about other points the clip alone decides.
        typical_deviation: (1 + K) medians of the clip's deviations.

    Returns:
        (1 + K) jumps, the person first, and (P) swapped flip pairs.
    """
    deviation = clip.deviation[t]
    no_deviation, no_ratio = np.full_like(deviation, np.nan), np.full_like(clip.swap_ratio[t], np.nan)
    other_deviation = np.stack([no_deviation, *(other_clip.deviation[index] for other_clip, index in other_clips)])
    other_ratio = np.stack([no_ratio, *(other_clip.swap_ratio[index] for other_clip, index in other_clips)])
    with np.errstate(invalid="ignore"):
        jumps = (deviation > _JUMP_FLOOR) & (deviation > _JUMP_RATIO * (clip.neighbor_distance[t] + LABEL_NOISE))
        swaps = clip.swap_ratio[t] < _SWAP_RATIO
        jumps &= np.where(
            np.isfinite(other_deviation).sum(axis=0) >= 2,
            _median(other_deviation, axis=0) <= deviation / _JUMP_RATIO,
            deviation > _JUMP_RATIO_ALONE * (typical_deviation + LABEL_NOISE),
        )
        # Twice the ratio, so that other cameras that nearly show the same swap count as showing it.
        swaps &= (np.isfinite(other_ratio).sum(axis=0) < 2) | (_median(other_ratio, axis=0) >= 2 * _SWAP_RATIO)
        jumps[1:] &= deviation[1:] > _JUMP_RATIO * (deviation[0] + LABEL_NOISE)  # otherwise the whole person moved
    return jumps, swaps


def _frame_suspects(
    skeleton: Skeleton,
    clip: ClipMotion,
    t: int,
    jumps: BoolArray,
    swaps: BoolArray,
    matching_frame: int | None,
) -> Iterator[MotionSuspect]:
    """Yield the suspects of one frame: the whole person, or else swapped pairs and single points.

    Args:
        skeleton: K keypoints in P flip pairs.
        clip: the clip.
        t: index of the frame in the clip.
        jumps: (1 + K) true if the person or the point jumps, the person first.
        swaps: (P) true for swapped flip pairs.
        matching_frame: number of the frame whose points the row holds instead of its own; None if it holds its own.
    """
    row, deviation_px = clip.rows[t], clip.deviation[t] * clip.body_px
    limits = np.maximum(_JUMP_FLOOR, _JUMP_RATIO * (clip.neighbor_distance[t] + LABEL_NOISE))
    ratios = np.maximum(np.nan_to_num(clip.deviation[t] / limits), 1.0)
    first_of_pair = [a for a, b in enumerate(skeleton.flip_indices) if a < b]
    # Where most pairs are swapped, the person's deviation is large too, but the swap is its cause.
    mostly_swapped = len(first_of_pair) > 0 and swaps.mean() >= 0.5
    if not mostly_swapped and (matching_frame is not None or jumps[0]):
        all_points = tuple(range(len(skeleton)))
        yield MotionSuspect(row, "person", all_points, deviation_px, matching_frame, float(ratios[0]))
        return
    pairs = [(a, skeleton.flip_indices[a]) for a, swapped in zip(first_of_pair, swaps, strict=True) if swapped]
    swapped_points = tuple(index for pair in pairs for index in pair)
    if pairs:
        strength = float(_SWAP_RATIO / max(float(clip.swap_ratio[t][swaps].min()), LABEL_NOISE))
        yield MotionSuspect(row, "left_right", swapped_points, deviation_px, None, strength)
    points = tuple(k for k in range(len(skeleton)) if jumps[1 + k] and k not in swapped_points)
    if points:
        strength = float(ratios[[1 + k for k in points]].max())
        yield MotionSuspect(row, "points", points, deviation_px, None, strength)
