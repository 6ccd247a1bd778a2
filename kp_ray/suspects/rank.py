"""Rank labelled images by what speaks against their labels: out-of-fold predictions, motion, repetition."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from kp_ray.checks.dataset import find_sentinels, remove_sentinels
from kp_ray.checks.labels import find_repeated, is_crossed
from kp_ray.checks.motion import LABEL_NOISE, MotionSuspect, find_motion_suspects, list_inner_rows
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray
from kp_ray.suspects.evidence import SUSPICIOUS_SCORE, Judgement, Kind, judge_predicted
from kp_ray.suspects.residuals import body_sizes

CorrectionRow = tuple[str, str, str, float | None, float | None]
"""A row of a corrections file: image, action, keypoint, x, y."""

_MOTION_SCORE = 5.0
"""Score of a finding of motion at its limit; each doubling of its strength adds 1, up to `_RANGE`."""
_REPEATED_SCORE = 2.0
"""Score of the less plausible of two images of a clip with equal labels, if the person does not move in the clip. A
step per frame of `LABEL_NOISE` adds 2, each doubling of it 2 more, up to twice `_RANGE`; images of two clips have
both."""
_BETTER_FIT = 0.5
"""What the more plausible image has less."""
_IS_REPEATED = "its labels are repeated by"
_RANGE = 3.0
_CROSSED_SCORE = 1.0
"""Score of shoulders and hips that point in opposite directions; real bodies twist, see `is_crossed`."""
_VAGUE = ("far", "points")
"""Kinds that say where the labels do not fit, but not which mistake would explain that."""
_SILENT_MOTION = 0.6
"""Factor of a prediction's score where the frames before and after fit the labels: the prediction is probably wrong."""


@dataclass(frozen=True, eq=False)
class Suspect:
    """A labelled image and what speaks against its labels.

    Attributes:
        image: name of the image.
        score: larger for labels that are more likely wrong; `SUSPICIOUS_SCORE` or more is proposed for correction.
        kind: the suspected mistake.
        points: names of the keypoints concerned; empty: all.
        reason: the mistake in words, and the evidence.
        corrections: rows of a corrections file that would correct the mistake.
    """

    image: str
    score: float
    kind: Kind
    points: tuple[str, ...]
    reason: str
    corrections: tuple[CorrectionRow, ...]


def rank_suspects(
    labels: Annotations, predicted: Mapping[str, FloatArray], disagreement: Mapping[str, FloatArray]
) -> list[Suspect]:
    """Rank the images whose labels are unusual, the most suspicious first; equal scores keep the labels' order.

    Args:
        labels: N images.
        predicted: out-of-fold prediction (K, 2) in pixels by image; images without one are judged by motion and
            repetition alone.
        disagreement: (K,) by image, see `judge_predicted`.

    Returns:
        With predictions, all labelled images; without, those that motion, repetition or crossed sides speak against.
    """
    labels = remove_sentinels(labels, find_sentinels(labels))
    judgements: dict[int, Judgement] = {}
    with_points = set(np.flatnonzero((labels.keypoints[..., 2] > 0).any(axis=1)).tolist())
    rows = [row for row, image in enumerate(labels.images) if image in predicted and row in with_points]
    if rows:
        images = [labels.images[row] for row in rows]
        stacked = (np.stack([values[image] for image in images]) for values in (predicted, disagreement))
        judgements = dict(zip(rows, judge_predicted(labels.select(rows), *stacked), strict=True))
    _weigh_by_motion(labels, judgements)
    for suspect in find_motion_suspects(labels):
        judgements[suspect.row] = _add_motion(labels, judgements.get(suspect.row), suspect)
    for row, points in enumerate(labels.keypoints):
        if is_crossed(labels.skeleton, points[:, :2]):
            # Which points are wrong is unknown: this adds to the score, and proposes no correction.
            crossed = Judgement(_CROSSED_SCORE, "", (), "shoulders and hips point in opposite directions")
            judgements[row] = _join(judgements.get(row), crossed)
    _add_repetitions(labels, judgements)
    suspects = [_describe(labels, row, judgement) for row, judgement in sorted(judgements.items())]
    return sorted(suspects, key=lambda suspect: -suspect.score)


def _score(judgements: Mapping[int, Judgement], row: int) -> float:
    return judgements[row].score if row in judgements else 0.0


def _weigh_by_motion(labels: Annotations, judgements: dict[int, Judgement]) -> None:
    """Lower the scores of images whose labels fit the frames before and after, in place.

    Scores above `SUSPICIOUS_SCORE` grow with the logarithm from there: the largest ones are failures of the prediction.
    """
    inner = list_inner_rows(labels)
    for row, judgement in judgements.items():
        score = judgement.score
        if score > SUSPICIOUS_SCORE:
            score = SUSPICIOUS_SCORE * (1 + float(np.log2(score / SUSPICIOUS_SCORE)))
        judgements[row] = replace(judgement, score=score * _SILENT_MOTION if row in inner else score)


def _add_repetitions(labels: Annotations, judgements: dict[int, Judgement]) -> None:
    """Add to the judgements, in place, what images with equal labels say about each other."""
    rows_by_first: dict[int, list[int]] = defaultdict(list)
    for row, first in find_repeated(labels).items():
        rows_by_first[first].append(row)
    views = _rows_by_scene(labels)
    for first, later in rows_by_first.items():
        # The first image with the lowest score keeps its labels.
        right, *wrong = sorted([first, *later], key=lambda row: (_score(judgements, row), row))
        right_score = _score(judgements, right)
        for row in wrong:
            surprise = 2 * math.log2(1 + _step(labels, views, right, row) / LABEL_NOISE)
            score = _REPEATED_SCORE + min(surprise, 2 * _RANGE)
            right_score = max(right_score, score - _BETTER_FIT)
            repeated = Judgement(score, "repeated", (), f"repeats the labels of {labels.images[right]}")
            judgements[row] = _join(judgements.get(row), repeated)
        # A person must look at all of these images, one after the other.
        reason = f"{_IS_REPEATED} {labels.images[wrong[0]]}, which they fit less"
        known = judgements.get(right)
        if known is not None and known.kind and known.score >= SUSPICIOUS_SCORE:
            judgements[right] = replace(known, score=right_score, reason=f"{known.reason}; {reason}")
        else:
            judgements[right] = Judgement(right_score, "repeated", (), reason)


def _rows_by_scene(labels: Annotations) -> dict[str, dict[str, dict[int, int]]]:
    """Return the row of each image by scene, camera and frame."""
    rows: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for row, (scene, camera, frame) in enumerate(zip(labels.scenes, labels.cameras, labels.frames, strict=True)):
        rows[scene][camera][frame] = row
    return rows


def _step(labels: Annotations, views: Mapping[str, Mapping[str, Mapping[int, int]]], row: int, other: int) -> float:
    """Return how far the person moves between two images with equal labels, in body sizes.

    It is the median over the scene's other cameras, or without them over the successive frames of the clip that differ;
    infinite for images of two clips.

    Args:
        labels: N images.
        views: result of `_rows_by_scene`.
        row, other: rows of the two images.
    """
    scene, camera, frames = labels.scenes[row], labels.cameras[row], (labels.frames[row], labels.frames[other])
    if (scene, camera) != (labels.scenes[other], labels.cameras[other]):
        return math.inf
    clips = [clip for name, clip in views[scene].items() if name != camera]
    pairs = [(clip[frames[0]], clip[frames[1]]) for clip in clips if frames[0] in clip and frames[1] in clip]
    if pairs:
        return float(np.median([_distance(labels, *pair) for pair in pairs]))
    clip_rows = [index for _, index in sorted(views[scene][camera].items())]
    steps = [_distance(labels, *pair) for pair in pairwise(clip_rows)]
    return float(np.median([step for step in steps if step > 0] or [0.0]))


def _distance(labels: Annotations, row: int, other: int) -> float:
    """Return the median distance of two images' points in body sizes; 0 without common points."""
    both = labels.keypoints[[row, other], :, :2]
    both = both[:, np.isfinite(both).all(axis=(0, 2))]
    return float(np.median(np.linalg.norm(both[0] - both[1], axis=1)) / body_sizes(both)[0]) if both.shape[1] else 0.0


def _add_motion(labels: Annotations, judgement: Judgement | None, suspect: MotionSuspect) -> Judgement:
    """Add what motion says about an image to its judgement."""
    score = _MOTION_SCORE + min(float(np.log2(suspect.strength)), _RANGE)
    names = ", ".join(labels.skeleton.names[k] for k in suspect.points)
    if suspect.kind == "person":
        reason = f"the person is {suspect.deviation_px[0]:.0f} px away from the frames before and after"
        if suspect.matching_frame is not None:
            reason = f"the scene's other cameras show that its points belong to frame {suspect.matching_frame}"
        kind: Kind = "far" if suspect.matching_frame is None else "other_image"
        return _join(judgement, Judgement(score, kind, (), reason))
    if suspect.kind == "left_right":
        reason = f"left and right are exchanged between the frames before and after: {names}"
        return _join(judgement, Judgement(score, "left_right", suspect.points, reason))
    reason = f"far from their place in the frames before and after: {names}"
    return _join(judgement, Judgement(score, "points", suspect.points, reason))


def _join(known: Judgement | None, added: Judgement) -> Judgement:
    """Add a judgement of the same image: the scores add up, and the mistake is the one that says more."""
    score = added.score + max(known.score if known else 0.0, 0.0)
    if known is None or not known.kind:
        return replace(added, score=score)
    reason = f"{known.reason}; {added.reason}"
    if added.kind == known.kind:
        # No points mean all points.
        points = tuple(sorted({*known.points, *added.points})) if known.points and added.points else ()
        return replace(known, score=score, reason=reason, points=points)
    keeps_known = not added.kind or (added.kind in _VAGUE and known.kind not in _VAGUE)
    kept = known if keeps_known or (added.kind in _VAGUE and known.score >= added.score) else added
    return replace(kept, score=score, reason=reason)


def _describe(labels: Annotations, row: int, judgement: Judgement) -> Suspect:
    names = tuple(labels.skeleton.names[k] for k in judgement.points)
    is_suspicious = bool(judgement.kind) and judgement.score >= SUSPICIOUS_SCORE
    is_proposed = is_suspicious and not judgement.reason.startswith(_IS_REPEATED)
    corrections = tuple(_propose(labels, row, judgement)) if is_proposed else ()
    return Suspect(labels.images[row], judgement.score, judgement.kind, names, judgement.reason, corrections)


def _propose(labels: Annotations, row: int, judgement: Judgement) -> Iterator[CorrectionRow]:
    """Propose corrections: exchange points, move all back, remove single points, or drop the image."""
    image, names, flip = labels.images[row], labels.skeleton.names, labels.skeleton.flip_indices
    xy = labels.keypoints[row, :, :2]
    if judgement.kind == "left_right":
        pairs = judgement.points or tuple(k for k, other in enumerate(flip) if k != other)
        for k in pairs:
            yield image, "point", names[k], *_cells(xy[flip[k]])
    elif judgement.kind == "shifted":
        for k, name in enumerate(names):
            if np.isfinite(xy[k]).all():
                yield image, "point", name, *_cells(xy[k] + np.array(judgement.shift))
    elif judgement.kind == "points":
        for k in judgement.points:
            yield image, "point", names[k], None, None
    else:
        yield image, "drop", "", None, None


def _cells(xy: FloatArray) -> tuple[float | None, float | None]:
    """Return x and y rounded to a hundredth of a pixel; None where the point is not labelled."""
    if not np.isfinite(xy).all():
        return None, None
    return round(float(xy[0]), 2), round(float(xy[1]), 2)
