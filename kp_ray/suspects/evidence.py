"""Judge each image's labels by its out-of-fold prediction: how far apart they are, and which mistake explains that."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray
from kp_ray.suspects.residuals import UsualErrors, standardize

Kind = Literal["other_image", "left_right", "points", "shifted", "far", "repeated", ""]
"""Kind of a suspected mistake.

- other_image: the labels belong to another image.
- left_right: left and right are exchanged, in all or some pairs.
- points: single points are far from where they should be.
- shifted: all points are moved by the same distance.
- far: all points are far from where they should be, for another reason.
- repeated: the labels equal those of another image.
- "": no mistake is suspected.
"""

SUSPICIOUS_SCORE = 3.0
"""Score, in robust standard deviations, from which an image is suspicious and a correction is proposed."""
_FAR_DEVIATION = 2.5
"""Deviation, in robust standard deviations, above which a point is far from its prediction."""
_MIN_GAIN = 1.0
"""A mistake explains the distance if undoing it lowers the mean deviation of the points by more than this number of
robust standard deviations."""
_MIN_POINTS = 4
"""Minimum number of labelled points for the kinds "shifted" and "other_image"."""
_MAX_CANDIDATES = 400
"""Approximate number of images, beside those of its clip, whose predictions are compared with the labels of one image;
it bounds the time."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """The judgement of one image's labels.

    Attributes:
        score: robust standard deviations above the usual distance; larger if a mistake explains the distance.
        kind: the suspected mistake.
        points: indices of the keypoints concerned; empty for all keypoints.
        reason: the mistake in words; "" if the image is not suspicious.
        shift: x, y in pixels that move the labels onto the prediction, if the kind is "shifted".
        keeps_labels: True if this is the most plausible of several images with equal labels: no correction is proposed.
    """

    score: float
    kind: Kind = ""
    points: tuple[int, ...] = ()
    reason: str = ""
    shift: tuple[float, float] = (0.0, 0.0)
    keeps_labels: bool = False


def judge_predicted(labels: Annotations, predicted: FloatArray, disagreement: FloatArray) -> list[Judgement]:
    """Judge the labels of N images by their predictions.

    `UsualErrors.deviations` measures how far each point is from its prediction. The mean and the maximum over an
    image's points are standardized over all images, and the larger one is the score. For a mistake that explains the
    distance, the decrease of the mean when the mistake is undone is added to the score.

    Args:
        labels: N images with K keypoints; every image has at least one labelled keypoint.
        predicted: (N, K, 2) points in pixels.
        disagreement: (N, K) values that are larger where the members disagree or are unsure.
    """
    xy = np.where(labels.keypoints[..., 2:] > 0, labels.keypoints[..., :2], np.nan)
    clips = list(zip(labels.scenes, labels.cameras, strict=True))
    usual_errors = UsualErrors(xy, predicted, disagreement, clips)
    deviations = usual_errors.deviations(xy)
    person_means = np.nanmean(deviations, axis=1)
    person_scores, point_scores = standardize(person_means), standardize(np.nanmax(deviations, axis=1))
    mean_change_per_score = _change_per_standard_deviation(person_means, person_scores)
    rows_by_clip: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        rows_by_clip[clip].append(row)
    judgements = []
    for row in range(len(labels)):
        score = max(float(person_scores[row]), float(point_scores[row]))
        if score < SUSPICIOUS_SCORE:
            judgements.append(Judgement(score))
            continue
        judgements.append(
            _explain(
                labels, xy, usual_errors, row, deviations[row], score, mean_change_per_score, rows_by_clip[clips[row]]
            )
        )
    return judgements


def _change_per_standard_deviation(values: FloatArray, standardized: FloatArray) -> float:
    """Return by how much a value changes when its standardized value changes by 1."""
    low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
    span = float(standardized[high] - standardized[low])
    return float(values[high] - values[low]) / span if span > 0 else 1.0


def _explain(
    labels: Annotations,
    xy: FloatArray,
    usual_errors: UsualErrors,
    row: int,
    deviations: FloatArray,
    score: float,
    mean_change_per_score: float,
    clip_rows: list[int],
) -> Judgement:
    """Find the mistake that explains the distance of one image's labels from their prediction."""
    flip, names = list(labels.skeleton.flip_indices), labels.skeleton.names
    offsets = usual_errors.predicted[row] - xy[row]
    shift = np.nanmedian(offsets, axis=0)
    swapped_deviations, shifted_deviations = usual_errors.deviations(np.stack([xy[row][flip], xy[row] + shift]), row)
    candidates = _list_candidates(labels, row, clip_rows)
    candidate_means = (
        np.nanmean(usual_errors.deviations(xy[row], candidates), axis=1) if candidates else np.array([np.inf])
    )
    best_candidate = int(np.argmin(candidate_means))
    means: dict[Kind, float] = {
        "left_right": float(np.nanmean(swapped_deviations)),
        "shifted": float(np.nanmean(shifted_deviations)),
        # Raised, because the best of hundreds of other images fits a little better by chance.
        "other_image": float(candidate_means[best_candidate]) + _MIN_GAIN / 2,
    }
    if np.isfinite(deviations).sum() < _MIN_POINTS:  # a few points fit anywhere
        del means["shifted"], means["other_image"]
    kind = min(means, key=lambda name: means[name])
    gain = float(np.nanmean(deviations)) - means[kind]
    swapped_points = _list_swapped(flip, deviations, swapped_deviations)
    if gain > _MIN_GAIN:
        score += gain / mean_change_per_score
        if kind == "left_right":
            return Judgement(score, kind, swapped_points, "left and right are exchanged")
        if kind == "shifted":
            x, y = (float(value) for value in shift)
            return Judgement(score, kind, (), f"all points are shifted by {-x:.0f}, {-y:.0f} px", shift=(x, y))
        return Judgement(
            score, kind, (), f"the points fit the prediction for {labels.images[candidates[best_candidate]]}"
        )
    is_far = deviations > _FAR_DEVIATION
    if swapped_points and is_far[list(swapped_points)].sum() >= is_far.sum() / 2:
        reason = f"left and right are exchanged: {', '.join(names[k] for k in swapped_points)}"
        return Judgement(score, "left_right", swapped_points, reason)
    if 0 < is_far.sum() <= max(1, np.isfinite(deviations).sum() / 4):
        points = tuple(int(k) for k in np.flatnonzero(is_far))
        distances = np.linalg.norm(offsets, axis=1)
        described_points = ", ".join(f"{names[k]} by {distances[k]:.0f} px" for k in points)
        return Judgement(score, "points", points, f"far from the prediction: {described_points}")
    if not is_far.any():
        worst_point = int(np.nanargmax(deviations))
        return Judgement(score, "points", (worst_point,), f"far from the prediction: {names[worst_point]}")
    return Judgement(score, "far", (), "the person is far from the prediction")


def _list_candidates(labels: Annotations, row: int, clip_rows: list[int]) -> list[int]:
    """List the rows of other images to which a row's labels may belong: the clip's, then evenly spaced rows."""
    step = max(1, len(labels) // _MAX_CANDIDATES)
    candidates = dict.fromkeys([*clip_rows, *range(row % step, len(labels), step)])
    return [candidate for candidate in candidates if candidate != row]


def _list_swapped(flip: list[int], deviations: FloatArray, swapped_deviations: FloatArray) -> tuple[int, ...]:
    """List the keypoints of the flip pairs that fit the prediction clearly better when they are exchanged."""
    points: list[int] = []
    for a, b in enumerate(flip):
        gain = np.nansum(deviations[[a, b]]) - np.nansum(swapped_deviations[[a, b]])
        if a < b and gain > _MIN_GAIN * np.isfinite(deviations[[a, b]]).sum():  # one of the two may be unlabelled
            points += [a, b]
    return tuple(points)
