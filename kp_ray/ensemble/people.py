"""Choose one person where a member found several in an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kp_ray.ensemble.temporal import frame_numbers, rows_by_clip
from kp_ray.keypoints import FloatArray

TRACK_FRAMES = 8
"""Number of a clip's nearest other frames that locate its person."""
PersonRule = Literal["score", "largest", "track"]


@dataclass(frozen=True)
class ChosenPeople:
    """The chosen persons.

    Attributes:
        people: their indices in rising order, one per group.
        several: number of groups with several people to choose from.
        other_than_best_score: number of those in which another than the best-scoring person was chosen.
    """

    people: list[int]
    several: int
    other_than_best_score: int


def choose_people(
    images: Sequence[int],
    groups: Sequence[int],
    boxes: FloatArray,
    scores: FloatArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    rule: PersonRule,
    threshold: float,
) -> ChosenPeople:
    """Choose one of P people per group, a group being the people that one member found in one image.

    People below `threshold` are candidates only in a group that has none above it. A clip's track at an image is the
    median of the best-scoring boxes, of all members, in its `TRACK_FRAMES` nearest other frames. Closeness is
    exp(-d / s): d the mean distance of the box's two corners from the track's, s the longer side of the track's box.

    Args:
        images: (P,) image of each person, an index into `scenes`.
        groups: (P,) group of each person, any numbers.
        boxes: (P, 4) x1, y1, x2, y2 in pixels.
        scores: (P,).
        scenes, cameras, frames: (N,) of the images.
        rule: "score" chooses the best score; "largest" the largest box; "track" the best score times closeness, or the
            best score where a clip has no other frame.
        threshold: of the score.
    """
    people_by_group: dict[int, list[int]] = {}
    for person, group in enumerate(groups):
        people_by_group.setdefault(group, []).append(person)
    best = {group: max(people, key=lambda i: (scores[i], -i)) for group, people in people_by_group.items()}
    tracks = _Tracks([images[person] for person in best.values()], boxes[list(best.values())], scenes, cameras, frames)
    chosen, several, changed = [], 0, 0
    for group, people in people_by_group.items():
        choice = best[group]
        candidates = [person for person in people if scores[person] >= threshold] or people
        if len(candidates) > 1:
            several += 1
            track = tracks.find(images[choice]) if rule == "track" else None
            values = _rate(boxes[candidates], scores[candidates], rule, track)
            if values.max() > values[candidates.index(choice)]:  # the best score wins a tie
                choice = candidates[int(values.argmax())]
            changed += choice != best[group]
        chosen.append(choice)
    return ChosenPeople(sorted(chosen), several, changed)


def _rate(boxes: FloatArray, scores: FloatArray, rule: PersonRule, track: FloatArray | None) -> FloatArray:
    """Rate candidates (C,): the highest is chosen."""
    if rule == "largest":
        return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    if track is None:
        return scores
    distance = np.linalg.norm((boxes - track).reshape(-1, 2, 2), axis=2).mean(axis=1)
    return np.asarray(scores * np.exp(-distance / max(*(track[2:] - track[:2]), 1.0)))


class _Tracks:
    """The box that a clip's near frames suggest for an image."""

    def __init__(
        self,
        images: Sequence[int],
        boxes: FloatArray,
        scenes: Sequence[str],
        cameras: Sequence[str],
        frames: Sequence[int | None],
    ) -> None:
        self.scenes, self.cameras, self.numbers = scenes, cameras, frame_numbers(frames)
        self.boxes: dict[int, list[FloatArray]] = {}
        for image, box in zip(images, boxes, strict=True):
            self.boxes.setdefault(image, []).append(box)
        has_person = np.zeros(len(scenes), dtype=bool)
        has_person[list(self.boxes)] = True
        self.clips: Mapping[tuple[str, str], npt.NDArray[np.intp]] = rows_by_clip(
            scenes, cameras, self.numbers, has_person
        )

    def find(self, image: int) -> FloatArray | None:
        """Return the median box (4,) of the nearest other frames; None if the image's clip has none."""
        clip = self.clips.get((self.scenes[image], self.cameras[image]), np.empty(0, dtype=np.intp))
        others = clip[clip != image]
        if not len(others):
            return None
        distances = np.abs(self.numbers[others] - self.numbers[image])
        near = others[np.argsort(distances, kind="stable")[:TRACK_FRAMES]]
        return np.asarray(np.median([box for row in near.tolist() for box in self.boxes[row]], axis=0))
