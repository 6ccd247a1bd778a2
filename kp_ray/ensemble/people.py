"""Choose one person of several that were found."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from kp_ray.ensemble.temporal import frame_numbers, rows_by_clip
from kp_ray.keypoints import FloatArray

TRACK_FRAMES = 8
"""How many of a clip's nearest frames say where its person is."""


def choose_people(
    rows: Sequence[int],
    boxes: FloatArray,
    scores: FloatArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    asked: Sequence[int],
    rule: Literal["score", "largest", "track"],
    threshold: float,
) -> tuple[list[int], int, int]:
    """The one person of each answer, an answer being what one member said of one image.

    People below `threshold` are looked at only in an answer that has none above it. A clip's track at an image is the
    median of the best-scoring boxes, of all members, in its `TRACK_FRAMES` nearest other frames. Closeness is
    exp(-d / s): d the mean distance of the box's two corners from the track's, s the longer side of the track's box.

    Args:
        rows: (P,) image of each person, an index into `scenes`.
        boxes: (P, 4) x1, y1, x2, y2 in pixels.
        scores: (P,).
        scenes, cameras, frames: (N,) of the images.
        asked: (P,) the answer each person belongs to, any numbers.
        rule: best score; largest box; or best score times closeness (best score where a clip has no other frame).

    Returns:
        The chosen persons in rising order, one an answer; in how many answers there were several to choose from; and
        in how many of those the choice was another than the best score.
    """
    answers: dict[int, list[int]] = {}
    for person, answer in enumerate(asked):
        answers.setdefault(answer, []).append(person)
    best = {answer: max(people, key=lambda one: (scores[one], -one)) for answer, people in answers.items()}
    numbers = frame_numbers(frames)
    boxes_of: dict[int, list[FloatArray]] = {}
    for person in best.values():
        boxes_of.setdefault(rows[person], []).append(boxes[person])
    seen = np.zeros(len(scenes), dtype=bool)
    seen[list(boxes_of)] = True
    clips = rows_by_clip(scenes, cameras, numbers, seen)
    chosen, several, changed = [], 0, 0
    for answer, people in answers.items():
        choice = best[answer]
        sure = [one for one in people if scores[one] >= threshold] or people
        if len(sure) > 1:
            several += 1
            image = rows[choice]
            track = None
            if rule == "track":
                track = _track(clips.get((scenes[image], cameras[image])), image, numbers, boxes_of)
            worth = _worth(boxes[sure], scores[sure], rule, track)
            choice = sure[int(worth.argmax())] if worth.max() > worth[sure.index(choice)] else choice
            changed += choice != best[answer]
        chosen.append(choice)
    return sorted(chosen), several, changed


def _worth(boxes: FloatArray, scores: FloatArray, rule: str, track: FloatArray | None) -> FloatArray:
    if rule == "largest":
        return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    if track is None:
        return scores
    distance = np.linalg.norm((boxes - track).reshape(-1, 2, 2), axis=2).mean(axis=1)
    return np.asarray(scores * np.exp(-distance / max(*(track[2:] - track[:2]), 1.0)))


def _track(
    clip: npt.NDArray[np.intp] | None, image: int, numbers: FloatArray, boxes_of: dict[int, list[FloatArray]]
) -> FloatArray | None:
    others = clip[clip != image] if clip is not None else np.empty(0, dtype=np.intp)
    if not len(others):
        return None
    near = others[np.argsort(np.abs(numbers[others] - numbers[image]), kind="stable")[:TRACK_FRAMES]]
    return np.asarray(np.median([box for row in near.tolist() for box in boxes_of[row]], axis=0))
