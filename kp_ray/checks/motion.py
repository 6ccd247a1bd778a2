"""Look for labels that jump or exchange sides within a clip."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kp_ray.checks.findings import Finding, list_names, warning
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray, Skeleton

# A jump, in body sizes. Set on 4195 real labels (265 clips of 16 coarse frames, 5 cameras): leg raises and jumping
# jacks move a point by a whole body size from frame to frame and back, so other cameras decide where there are any.
_JUMP_FLOOR = 0.2
_JUMP_RATIO = 3.0  # of the frame's distance to that between its neighbours; also to the other cameras', or the body's
_ALONE_RATIO = 6.0  # without other cameras: to what is usual in the clip
_NOISE = 0.02  # a labeller's hand
_SWAP_FLOOR = 0.25
_SWAP_RATIO = 0.35
_FOREIGN_FLOOR = 0.1
_FOREIGN_RATIO = 3.0
_MAX_REFERENCES = 64


@dataclass(frozen=True)
class ClipMotion:
    """T >= 3 frames of one camera, in body sizes; what the ends of a clip cannot tell is NaN.

    Attributes:
        rows, frames: T places in the table, and frame numbers.
        xy: (T, K, 2) points.
        body_px: the median over the clip of the square root of the labels' box area.
        away: (T, 1 + K) how far the frame lies from its neighbours: the whole person (median point, nearer neighbour),
            then each point from the line between them.
        usual: (T, 1 + K) how far the neighbours lie from each other.
        exchange: (T, P) for each flip pair, how much nearer that line left and right come when exchanged: 0 is all
            the way, 1 not at all.
    """

    rows: list[int]
    frames: list[int]
    xy: FloatArray
    body_px: float
    away: FloatArray
    usual: FloatArray
    exchange: FloatArray


def _clips(annotations: Annotations) -> dict[tuple[str, str], ClipMotion]:
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    keys = zip(annotations.scenes, annotations.cameras, strict=True)
    for row, (key, frame) in enumerate(zip(keys, annotations.frames, strict=True)):
        if frame >= 0:
            members[key].append(row)
    clips = {}
    for key, rows in members.items():
        rows.sort(key=lambda row: annotations.frames[row])
        frames = [annotations.frames[row] for row in rows]
        xy = annotations.keypoints[rows, :, :2]
        sides = [np.ptp(points[np.isfinite(points[:, 0])], axis=0) for points in xy if np.isfinite(points).any()]
        body_px = float(np.median([math.sqrt(width * height) for width, height in sides])) if sides else 0.0
        if len(rows) >= 3 and body_px > 0 and len(set(frames)) == len(frames):
            clips[key] = _clip(annotations.skeleton, rows, frames, body_px, xy / body_px)
    return clips


def _clip(skeleton: Skeleton, rows: list[int], frames: list[int], body_px: float, xy: FloatArray) -> ClipMotion:
    """A clip from its points (T, K, 2) in body sizes."""
    before, here, after = xy[:-2], xy[1:-1], xy[2:]
    numbers = np.array(frames, dtype=np.float64)
    share = ((numbers[1:-1] - numbers[:-2]) / (numbers[2:] - numbers[:-2]))[:, None, None]
    line = before * (1 - share) + after * share
    off, apart = np.linalg.norm(here - line, axis=2), np.linalg.norm(after - before, axis=2)
    step = _median(np.linalg.norm(np.diff(xy, axis=0), axis=2), axis=1)
    whole = np.concatenate([step[:1], np.minimum(step[:-1], step[1:]), step[-1:]])
    whole_usual = np.concatenate([step[1:2], _median(apart, axis=1), step[-2:-1]])
    ends = ((1, 1), (0, 0))
    flip = skeleton.flip_indices
    left = [a for a, b in enumerate(flip) if a < b]
    crossed = np.linalg.norm(here[:, flip] - line, axis=2)
    keep, swap = off + off[:, flip], crossed + crossed[:, flip]
    with np.errstate(invalid="ignore", divide="ignore"):
        exchange = np.where(keep > _SWAP_FLOOR, swap / keep, 1.0)[:, left]
    return ClipMotion(
        rows, frames, xy, body_px,
        away=np.column_stack([whole, np.pad(off, ends, constant_values=np.nan)]),
        usual=np.column_stack([whole_usual, np.pad(apart, ends, constant_values=np.nan)]),
        exchange=np.pad(exchange, ends, constant_values=np.nan),
    )  # fmt: skip


def _median(values: FloatArray, axis: int) -> FloatArray:
    """The median of the numbers that are not NaN; NaN where there is none."""
    ordered = np.sort(values, axis=axis)  # NaN last
    count = np.isfinite(ordered).sum(axis=axis, keepdims=True)
    low, high = (
        np.take_along_axis(ordered, place, axis)
        for place in (np.maximum(count - 1, 0) // 2, count // 2 % values.shape[axis])
    )
    return np.asarray(np.squeeze((low + high) / 2, axis=axis))


def _foreign_rows(clips: Mapping[tuple[str, str], ClipMotion]) -> dict[int, int]:
    """The rows whose points belong to another frame, and that frame, by the scene's other cameras.

    How far a pose is from the poses of the other frames looks alike from every side, up to a factor a camera. A row
    whose distances are far from the other cameras' median at its frame, and close to it at another one, was filled
    with that one's points. Needs three cameras and six frames.
    """
    scenes: dict[str, list[ClipMotion]] = defaultdict(list)
    for (scene, _), clip in clips.items():
        scenes[scene].append(clip)
    foreign: dict[int, int] = {}
    for views in scenes.values():
        frames = sorted({frame for clip in views for frame in clip.frames})
        if len(views) < 3 or len(frames) < 6:
            continue
        references = frames[:: -(-len(frames) // _MAX_REFERENCES)]
        far = np.stack([_distances(clip, frames, references) for clip in views])
        at = [frames.index(frame) for frame in references]
        for view, clip in enumerate(views):
            expected = _median(np.delete(far, view, axis=0), axis=0)
            moved = (expected > 0.05) & (far[view] > 0)
            mine = far[view] / (float(np.median(far[view][moved] / expected[moved])) if moved.any() else 1.0)
            here = _median(np.abs(mine - expected), axis=1)
            there = _median(np.abs(mine[:, None] - expected[at][None]), axis=2)
            there = np.where(np.isnan(there), np.inf, there)
            bar = np.maximum(there.min(axis=1), _median(here, axis=0)) + _NOISE / 2
            for row, t in zip(clip.rows, map(frames.index, clip.frames), strict=True):
                if here[t] > _FOREIGN_FLOOR and here[t] > _FOREIGN_RATIO * bar[t]:
                    foreign[row] = references[int(there[t].argmin())]
    return foreign


def _distances(clip: ClipMotion, frames: Sequence[int], references: Sequence[int]) -> FloatArray:
    """The median point's distance (T, R) between the clip's `frames` and `references`; NaN for one it lacks."""
    place = {frame: t for t, frame in enumerate(clip.frames)}
    nothing = np.full_like(clip.xy[0], np.nan)
    stack = np.stack([clip.xy[place[frame]] if frame in place else nothing for frame in frames])
    against = [stack[frames.index(frame)] for frame in references]
    return np.stack([_median(np.linalg.norm(stack - reference, axis=2), axis=1) for reference in against], axis=1)


def motion_findings(annotations: Annotations) -> Iterator[Finding]:
    """One-frame jumps and exchanges, unless the scene's other cameras saw the same at that frame: then it is motion."""
    clips = _clips(annotations)
    foreign = _foreign_rows(clips)
    seen: dict[tuple[str, int], list[tuple[str, ClipMotion, int]]] = defaultdict(list)
    for (scene, camera), clip in clips.items():
        for t, frame in enumerate(clip.frames):
            seen[scene, frame].append((camera, clip, t))
    for (scene, camera), clip in clips.items():
        typical = _median(clip.away, axis=0)
        for t, frame in enumerate(clip.frames):
            others = [(other, s) for name, other, s in seen[scene, frame] if name != camera]
            away, image = clip.away[t], annotations.images[clip.rows[t]]
            with np.errstate(invalid="ignore"):
                jumps = (away > _JUMP_FLOOR) & (away > _JUMP_RATIO * (clip.usual[t] + _NOISE))
                swaps = clip.exchange[t] < _SWAP_RATIO
                if len(others) >= 2:
                    jumps &= ~(np.median([other.away[s] for other, s in others], axis=0) > away / _JUMP_RATIO)
                    swaps &= ~(np.median([other.exchange[s] for other, s in others], axis=0) < 2 * _SWAP_RATIO)
                else:
                    jumps &= away > _ALONE_RATIO * (typical + _NOISE)
                jumps[1:] &= away[1:] > _JUMP_RATIO * (away[0] + _NOISE)
            like = foreign.get(clip.rows[t])
            yield from _frame_findings(annotations.skeleton, image, away * clip.body_px, jumps, swaps, like)


def _frame_findings(
    skeleton: Skeleton,
    image: str,
    away_px: FloatArray,
    jumps: npt.NDArray[np.bool_],
    swaps: npt.NDArray[np.bool_],
    like: int | None,
) -> Iterator[Finding]:
    """The findings of one frame: the whole person (as in frame `like`), else exchanged pairs and single points."""
    left = [a for a, b in enumerate(skeleton.flip_indices) if a < b]
    mirrored = len(left) > 0 and swaps.mean() >= 0.5
    if not mirrored and (like is not None or jumps[0]):
        message = f"the person is {away_px[0]:.0f} px from where the frames before and after have it"
        if like is not None:
            message = f"by the scene's other cameras its points belong to another frame, like frame {like}"
        yield warning("jump", image, message, "compare picture and labels; drop the row, or correct its points")
        return
    pairs = [(a, skeleton.flip_indices[a]) for a, swapped in zip(left, swaps, strict=True) if swapped]
    if pairs:
        message = "left and right are exchanged: " + list_names(
            [f"{skeleton.names[a]}/{skeleton.names[b]}" for a, b in pairs]
        )
        yield warning("left_right", image, f"{message}, by the frames before and after", "exchange the two points")
    told = {index for pair in pairs for index in pair}
    points = [k for k in range(len(skeleton)) if jumps[1 + k] and k not in told]
    if points:
        message = list_names([f"{skeleton.names[k]} by {away_px[1 + k]:.0f} px" for k in points])
        yield warning("jump", image, f"out of line with the frames before and after: {message}", "correct the points")
