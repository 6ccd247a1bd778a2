"""Judge each image's labels by its out-of-fold prediction: how unusual they are, and which mistake explains that."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray
from kp_ray.suspects.residuals import UsualErrors, standardize

Kind = Literal["other_image", "left_right", "points", "shifted", "far", "repeated", ""]
"""Kind of a suspected mistake: the labels of another image; left and right exchanged; single points; all points moved
by the same distance; all points far from where they should be, for another reason; equal to the labels of another
image; "" for none."""

SUSPICIOUS_SCORE = 3.0
"""Score, in robust standard deviations, from which an image is proposed for correction."""
_POINT_SIGMAS = 2.5
"""Robust standard deviations above which a point is named, if it is not the whole person."""
_EXPLAINED = 1.0
"""Fall of the mean over the points, in robust standard deviations, from which a mistake explains the distance."""
_MIN_POINTS = 4
"""Labelled points from which a shift or the pose of another image can explain a distance."""
_MAX_CANDIDATES = 400
"""Images whose predictions are compared with the labels of one image; it bounds the time."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """The judgement of one image's labels.

    Attributes:
        score: robust standard deviations above the usual; larger for a distance that a mistake explains.
        kind: the suspected mistake.
        points: indices of the keypoints concerned; empty: all.
        reason: the mistake in words; "" if the image is not suspicious.
        other_image: name of the image whose prediction the labels fit; "" unless the kind is "other_image".
        shift: (2,) x, y in pixels that move the labels onto the prediction, if the kind is "shifted".
    """

    score: float
    kind: Kind = ""
    points: tuple[int, ...] = ()
    reason: str = ""
    other_image: str = ""
    shift: tuple[float, float] = (0.0, 0.0)


def judge_predicted(labels: Annotations, predicted: FloatArray, disagreement: FloatArray) -> list[Judgement]:
    """Judge the labels of N images by their predictions.

    The score is the largest of the person's (mean over the points) and the worst point's robust standard deviations,
    each compared with those of all images, and the fall of the person's if a mistake explains the distance.

    Args:
        labels: N images with K keypoints, at least one of which is labelled.
        predicted: (N, K, 2) points in pixels.
        disagreement: (N, K) larger where the members disagree or are not sure.
    """
    xy = np.where(labels.keypoints[..., 2:] > 0, labels.keypoints[..., :2], np.nan)
    clips = list(zip(labels.scenes, labels.cameras, strict=True))
    usual = UsualErrors(xy, predicted, disagreement, clips)
    sigmas = usual.sigmas(xy)
    person_means = np.nanmean(sigmas, axis=1)
    worst = np.nanmax(sigmas, axis=1)
    person_scores, point_scores = standardize(person_means), standardize(worst)
    unit = _unit_of(person_means, person_scores)
    rows_by_clip: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        rows_by_clip[clip].append(row)
    judgements = []
    for row in range(len(labels)):
        score = max(float(person_scores[row]), float(point_scores[row]))
        if score < SUSPICIOUS_SCORE:
            judgements.append(Judgement(score))
            continue
        judgements.append(_explain(labels, xy, usual, row, sigmas[row], score, unit, rows_by_clip[clips[row]]))
    return judgements


def _unit_of(values: FloatArray, standardized: FloatArray) -> float:
    """Return the length of one standardized unit in the unit of the values."""
    low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
    span = float(standardized[high] - standardized[low])
    return float(values[high] - values[low]) / span if span > 0 else 1.0


def _explain(
    labels: Annotations,
    xy: FloatArray,
    usual: UsualErrors,
    row: int,
    sigmas: FloatArray,
    score: float,
    unit: float,
    clip: list[int],
) -> Judgement:
    """Find the mistake that explains the distance of one image's labels from their prediction."""
    own = float(np.nanmean(sigmas))
    flip = list(labels.skeleton.flip_indices)
    difference = usual.predicted[row] - xy[row]
    shift = np.nanmedian(difference, axis=0)
    swapped, shifted = usual.sigmas(np.stack([xy[row][flip], xy[row] + shift]), row)
    others = [index for index in _candidates(labels, row, clip) if index != row]
    elsewhere = np.nanmean(usual.sigmas(xy[row], others), axis=1) if others else np.array([np.inf])
    best = int(np.argmin(elsewhere))
    means: dict[Kind, float] = {
        "left_right": float(np.nanmean(swapped)),
        "shifted": float(np.nanmean(shifted)),
        "other_image": float(elsewhere[best]),
    }
    # One of hundreds of other images fits a little better by chance.
    means["other_image"] += _EXPLAINED / 2
    if np.isfinite(sigmas).sum() < _MIN_POINTS:  # a few points fit anywhere
        del means["shifted"], means["other_image"]
    kind = min(means, key=lambda name: means[name])
    gain = own - means[kind]
    far = sigmas > _POINT_SIGMAS
    names = labels.skeleton.names
    if gain > _EXPLAINED:
        score += gain / unit
        if kind == "left_right":
            return Judgement(score, kind, _changed_pairs(flip, sigmas, swapped), "left and right are exchanged")
        if kind == "shifted":
            x, y = (float(value) for value in shift)
            return Judgement(score, kind, (), f"all points are shifted by {-x:.0f}, {-y:.0f} px", shift=(x, y))
        image = labels.images[others[best]]
        return Judgement(score, kind, (), f"the points fit the prediction for {image}", other_image=image)
    pairs = _changed_pairs(flip, sigmas, swapped)
    if pairs and far[list(pairs)].sum() >= far.sum() / 2:
        listed = ", ".join(names[k] for k in pairs)
        return Judgement(score, "left_right", pairs, f"left and right are exchanged: {listed}")
    if 0 < far.sum() <= max(1, np.isfinite(sigmas).sum() / 4):
        points = tuple(int(k) for k in np.flatnonzero(far))
        pixels = np.linalg.norm(difference, axis=1)
        listed = ", ".join(f"{names[k]} by {pixels[k]:.0f} px" for k in points)
        return Judgement(score, "points", points, f"far from the prediction: {listed}")
    if far.sum() == 0:
        points = (int(np.nanargmax(sigmas)),)
        return Judgement(score, "points", points, f"far from the prediction: {names[points[0]]}")
    return Judgement(score, "far", (), "the person is far from the prediction")


def _candidates(labels: Annotations, row: int, clip: list[int]) -> list[int]:
    """Return rows whose image the labels may belong to: the clip's, then evenly spaced ones of the whole data set."""
    step = max(1, len(labels) // _MAX_CANDIDATES)
    return [*dict.fromkeys([*clip, *range(row % step, len(labels), step)])]


def _changed_pairs(flip: list[int], sigmas: FloatArray, swapped: FloatArray) -> tuple[int, ...]:
    """Return the points of the pairs that fit the prediction clearly better when exchanged, left and right in turn."""
    points: list[int] = []
    for a, b in enumerate(flip):
        if a < b and sigmas[a] + sigmas[b] - swapped[a] - swapped[b] > 2 * _EXPLAINED:
            points += [a, b]
    return tuple(points)
