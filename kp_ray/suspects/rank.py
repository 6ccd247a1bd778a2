"""Rank labelled images by the evidence against their labels: out-of-fold predictions, motion, repetition."""

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
"""Score of a motion suspect of strength 1; each doubling of the strength adds 1, up to `_MAX_BONUS` in all."""
_MAX_BONUS = 3.0
_REPEATED_SCORE = 2.0
"""Score of the less plausible of two images with equal labels, if the person does not move between them. A movement m,
in body sizes, adds 2 * log2(1 + m / `LABEL_NOISE`), at most 2 * `_MAX_BONUS`."""
_PLAUSIBLE_MARGIN = 0.5
"""Among images with equal labels, the score of the most plausible one is raised to the highest repetition score of the
others minus this margin, unless it is higher already."""
_CROSSED_SCORE = 1.0
"""Score of shoulders and hips that point in opposite directions. It is low, because real bodies can twist."""
_VAGUE_KINDS = ("far", "points")
"""Kinds that say which points are far from where they are expected, but not by which mistake."""
_INNER_FRAME_FACTOR = 0.6
"""Factor for the score that a prediction gives to an image between two other frames of its clip. Wrong labels of such
an image usually jump, and `_add_motion` then adds a score. Without a jump, the prediction is probably wrong instead."""


@dataclass(frozen=True, eq=False)
class Suspect:
    """A labelled image and the evidence against its labels.

    Attributes:
        image: name of the image.
        score: larger for labels that are more likely wrong; `SUSPICIOUS_SCORE` or more is suspicious.
        kind: the suspected mistake.
        points: names of the keypoints concerned; empty for all keypoints.
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
        predicted: out-of-fold predictions (K, 2) in pixels by image; an image without a prediction is judged by motion,
            repetition and crossed sides alone.
        disagreement: by image, (K,) values that are larger where the members disagree, see `judge_predicted`.

    Returns:
        All labelled images with a prediction, and the other images with any evidence against their labels.
    """
    labels = remove_sentinels(labels, find_sentinels(labels))
    judgements: dict[int, Judgement] = {}
    labelled_rows = np.flatnonzero((labels.keypoints[..., 2] > 0).any(axis=1)).tolist()
    rows = [row for row in labelled_rows if labels.images[row] in predicted]
    if rows:
        images = [labels.images[row] for row in rows]
        points, disagreements = (np.stack([values[image] for image in images]) for values in (predicted, disagreement))
        judgements = dict(zip(rows, judge_predicted(labels.select(rows), points, disagreements), strict=True))
    _lower_prediction_scores(labels, judgements)
    for suspect in find_motion_suspects(labels):
        judgements[suspect.row] = _add_motion(labels, judgements.get(suspect.row), suspect)
    for row, keypoints in enumerate(labels.keypoints):
        if is_crossed(labels.skeleton, keypoints[:, :2]):
            # The judgement has no kind, because it is unknown which points are wrong: no correction is proposed.
            crossed = Judgement(_CROSSED_SCORE, "", (), "shoulders and hips point in opposite directions")
            judgements[row] = _join(judgements.get(row), crossed)
    _add_repetitions(labels, judgements)
    suspects = [_make_suspect(labels, row, judgement) for row, judgement in sorted(judgements.items())]
    return sorted(suspects, key=lambda suspect: -suspect.score)


def _row_score(judgements: Mapping[int, Judgement], row: int) -> float:
    return judgements[row].score if row in judgements else 0.0


def _lower_prediction_scores(labels: Annotations, judgements: dict[int, Judgement]) -> None:
    """Lower, in place, the scores that predictions give to images.

    First, the part of every score above `SUSPICIOUS_SCORE` is compressed logarithmically, because failed predictions
    cause the largest scores. Then the scores of images between two other frames of their clip are multiplied by
    `_INNER_FRAME_FACTOR`.
    """
    inner_rows = list_inner_rows(labels)
    for row, judgement in judgements.items():
        score = judgement.score
        if score > SUSPICIOUS_SCORE:
            score = SUSPICIOUS_SCORE * (1 + float(np.log2(score / SUSPICIOUS_SCORE)))
        judgements[row] = replace(judgement, score=score * _INNER_FRAME_FACTOR if row in inner_rows else score)


def _add_repetitions(labels: Annotations, judgements: dict[int, Judgement]) -> None:
    """Add the judgements of images with equal labels, in place."""
    repeated_rows: dict[int, list[int]] = defaultdict(list)
    for row, first_row in find_repeated(labels).items():
        repeated_rows[first_row].append(row)
    clips = _Clips(labels)
    for first_row, later_rows in repeated_rows.items():
        # The image with the lowest score keeps its labels; of equal scores, the first image.
        kept_row, *wrong_rows = sorted([first_row, *later_rows], key=lambda row: (_row_score(judgements, row), row))
        kept_score = _row_score(judgements, kept_row)
        for row in wrong_rows:
            bonus = 2 * math.log2(1 + clips.measure_movement(kept_row, row) / LABEL_NOISE)
            score = _REPEATED_SCORE + min(bonus, 2 * _MAX_BONUS)
            kept_score = max(kept_score, score - _PLAUSIBLE_MARGIN)
            repeated = Judgement(score, "repeated", (), f"repeats the labels of {labels.images[kept_row]}")
            judgements[row] = _join(judgements.get(row), repeated)
        # The kept image gets a score near those of its repetitions, so that the list shows them together.
        reason = f"{labels.images[wrong_rows[0]]} has the same labels, with at least as much evidence against them"
        judgement = judgements.get(kept_row, Judgement(0.0))
        reason = _join_reasons(judgement.reason, reason)
        if judgement.kind and judgement.score >= SUSPICIOUS_SCORE:
            judgements[kept_row] = replace(judgement, score=kept_score, reason=reason)
        else:
            judgements[kept_row] = Judgement(kept_score, "repeated", (), reason, keeps_labels=True)


class _Clips:
    """The clips of the labelled images; images without a frame number belong to none."""

    def __init__(self, labels: Annotations) -> None:
        self.labels = labels
        self.rows: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
        """Row of an image by scene, camera and frame."""
        for row, (scene, camera, frame) in enumerate(zip(labels.scenes, labels.cameras, labels.frames, strict=True)):
            if frame >= 0:
                self.rows[scene][camera][frame] = row
        self._typical_steps: dict[tuple[str, str], float] = {}

    def measure_movement(self, row_a: int, row_b: int) -> float:
        """Estimate how far the person moves between two images with equal labels, in body sizes.

        If other cameras of the scene have both frames, the estimate is the median of the movements that they show.
        Otherwise it is the clip's typical step. It is infinite for images of two clips, or without frame numbers.

        Args:
            row_a, row_b: rows of the two images.
        """
        labels = self.labels
        scene, camera = labels.scenes[row_a], labels.cameras[row_a]
        frame_a, frame_b = labels.frames[row_a], labels.frames[row_b]
        if (scene, camera) != (labels.scenes[row_b], labels.cameras[row_b]) or min(frame_a, frame_b) < 0:
            return math.inf
        other_clips = [clip for name, clip in self.rows[scene].items() if name != camera]
        pairs = [(clip[frame_a], clip[frame_b]) for clip in other_clips if frame_a in clip and frame_b in clip]
        if pairs:
            return float(np.median([_measure_distance(labels, *pair) for pair in pairs]))
        return self._typical_step(scene, camera)

    def _typical_step(self, scene: str, camera: str) -> float:
        """Return the median movement between successive frames of a clip, without frames of equal labels."""
        if (scene, camera) not in self._typical_steps:
            clip_rows = [row for _, row in sorted(self.rows[scene][camera].items())]
            steps = [_measure_distance(self.labels, *pair) for pair in pairwise(clip_rows)]
            self._typical_steps[scene, camera] = float(np.median([step for step in steps if step > 0] or [0.0]))
        return self._typical_steps[scene, camera]


def _measure_distance(labels: Annotations, row_a: int, row_b: int) -> float:
    """Return the median distance between the points of two images, in body sizes; 0 without common points."""
    xy = labels.keypoints[[row_a, row_b], :, :2]
    xy = xy[:, np.isfinite(xy).all(axis=(0, 2))]
    return float(np.median(np.linalg.norm(xy[0] - xy[1], axis=1)) / body_sizes(xy)[0]) if xy.shape[1] else 0.0


def _add_motion(labels: Annotations, judgement: Judgement | None, suspect: MotionSuspect) -> Judgement:
    """Add the motion suspect of an image to the image's judgement."""
    score = _MOTION_SCORE + min(float(np.log2(suspect.strength)), _MAX_BONUS)
    names = ", ".join(labels.skeleton.names[k] for k in suspect.points)
    if suspect.kind == "person":
        reason = f"the person is {suspect.deviation_px[0]:.0f} px away from the frames before and after"
        if suspect.matching_frame is not None:
            reason = f"the scene's other cameras show that its points belong to frame {suspect.matching_frame}"
        kind: Kind = "far" if suspect.matching_frame is None else "other_image"
        return _join(judgement, Judgement(score, kind, (), reason))
    if suspect.kind == "left_right":
        reason = f"left and right are exchanged compared with the frames before and after: {names}"
        return _join(judgement, Judgement(score, "left_right", suspect.points, reason))
    reason = f"far from their place in the frames before and after: {names}"
    return _join(judgement, Judgement(score, "points", suspect.points, reason))


def _join(earlier: Judgement | None, added: Judgement) -> Judgement:
    """Join two judgements of an image: their scores add up, and the kind that explains more is kept."""
    if earlier is None:
        return added
    score, reason = added.score + max(earlier.score, 0.0), _join_reasons(earlier.reason, added.reason)
    if not earlier.kind:
        return replace(added, score=score, reason=reason)
    if added.kind == earlier.kind:
        # Empty points mean all points.
        points = tuple(sorted({*earlier.points, *added.points})) if earlier.points and added.points else ()
        return replace(earlier, score=score, reason=reason, points=points)
    if not added.kind:
        kept = earlier
    elif added.kind in _VAGUE_KINDS:
        kept = earlier if earlier.kind not in _VAGUE_KINDS or earlier.score >= added.score else added
    else:
        kept = added
    return replace(kept, score=score, reason=reason)


def _join_reasons(earlier: str, added: str) -> str:
    return f"{earlier}; {added}" if earlier else added


def _make_suspect(labels: Annotations, row: int, judgement: Judgement) -> Suspect:
    names = tuple(labels.skeleton.names[k] for k in judgement.points)
    is_suspicious = bool(judgement.kind) and judgement.score >= SUSPICIOUS_SCORE
    corrections = (
        tuple(_propose_corrections(labels, row, judgement)) if is_suspicious and not judgement.keeps_labels else ()
    )
    return Suspect(labels.images[row], judgement.score, judgement.kind, names, judgement.reason, corrections)


def _propose_corrections(labels: Annotations, row: int, judgement: Judgement) -> Iterator[CorrectionRow]:
    """Propose corrections: exchange points, move all points back, remove single points, or drop the image."""
    image, names, flip = labels.images[row], labels.skeleton.names, labels.skeleton.flip_indices
    xy = labels.keypoints[row, :, :2]
    if judgement.kind == "left_right":
        for k in judgement.points or [k for k, mirrored in enumerate(flip) if k != mirrored]:
            yield image, "point", names[k], *_xy_cells(xy[flip[k]])
    elif judgement.kind == "shifted":
        for k, name in enumerate(names):
            if np.isfinite(xy[k]).all():
                yield image, "point", name, *_xy_cells(xy[k] + np.array(judgement.shift))
    elif judgement.kind == "points":
        for k in judgement.points:
            yield image, "point", names[k], None, None
    else:
        yield image, "drop", "", None, None


def _xy_cells(xy: FloatArray) -> tuple[float | None, float | None]:
    """Return x and y rounded to a hundredth of a pixel; None where the point is not labelled."""
    if not np.isfinite(xy).all():
        return None, None
    return round(float(xy[0]), 2), round(float(xy[1]), 2)
