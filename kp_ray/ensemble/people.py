"""Choose one detection where a member found several people in an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kp_ray.ensemble.temporal import frame_numbers, rows_by_clip
from kp_ray.keypoints import FloatArray

TRACK_FRAMES = 8
"""Number of neighbouring frames of a clip whose boxes make the clip's track at an image."""
PersonRule = Literal["score", "largest", "track"]


@dataclass(frozen=True)
class ChosenPeople:
    """The chosen people.

    Attributes:
        people: indices of the chosen people in rising order, one per group.
        several: number of groups with several people to choose from.
        other_than_best_score: number of these groups in which the rule did not choose the best score.
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
    """Choose one person per group; the people that one member found in one image form a group.

    If a person of a group reaches `threshold`, people below `threshold` are not candidates in the group.

    The rule "track" compares a box with the clip's track at the image: the median box of all members' best-scoring
    boxes in the `TRACK_FRAMES` nearest other frames. Closeness is exp(-d / s), where d is the mean distance between the
    corners of the box and the corners of the track's box, and s is the longer side of the track's box.

    Args:
        images: (P,) image of each person, as an index into `scenes`.
        groups: (P,) group of each person, any numbers.
        boxes: (P, 4) x1, y1, x2, y2 in pixels.
        scores: (P,) scores of the people.
        scenes, cameras, frames: (N,) scene, camera and frame number of each image.
        rule: "score" chooses the best score; "largest" the largest box; "track" the best score times closeness, or the
            best score in a clip without other frames.
        threshold: lowest score of a candidate.
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
            ratings = _rate(boxes[candidates], scores[candidates], rule, track)
            if ratings.max() > ratings[candidates.index(choice)]:  # the best score wins a tie
                choice = candidates[int(ratings.argmax())]
            changed += choice != best[group]
        chosen.append(choice)
    return ChosenPeople(sorted(chosen), several, changed)


def _rate(boxes: FloatArray, scores: FloatArray, rule: PersonRule, track: FloatArray | None) -> FloatArray:
    """Rate C candidates by the rule; the candidate with the highest rating is chosen.

    Args:
        boxes: (C, 4).
        scores: (C,).
        rule: as in `choose_people`.
        track: box of the track (4,); None for the rules "score" and "largest", and in a clip without other frames.
    """
    if rule == "largest":
        return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    if track is None:
        return scores
    distance = np.linalg.norm((boxes - track).reshape(-1, 2, 2), axis=2).mean(axis=1)
    return np.asarray(scores * np.exp(-distance / max(*(track[2:] - track[:2]), 1.0)))


class _Tracks:
    """The boxes of every clip, by image."""

    def __init__(
        self,
        images: Sequence[int],
        boxes: FloatArray,
        scenes: Sequence[str],
        cameras: Sequence[str],
        frames: Sequence[int | None],
    ) -> None:
        """Group boxes by clip.

        Args:
            images: (P,) image of each box, as an index into `scenes`.
            boxes: (P, 4).
            scenes, cameras, frames: (N,) scene, camera and frame number of each image.
        """
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
        """Return the median box (4,) of the clip's frames nearest to an image; None if the clip has no other frame."""
        clip = self.clips.get((self.scenes[image], self.cameras[image]), np.empty(0, dtype=np.intp))
        neighbours = clip[clip != image]
        if not len(neighbours):
            return None
        distances = np.abs(self.numbers[neighbours] - self.numbers[image])
        nearest = neighbours[np.argsort(distances, kind="stable")[:TRACK_FRAMES]]
        return np.asarray(np.median([box for row in nearest.tolist() for box in self.boxes[row]], axis=0))
