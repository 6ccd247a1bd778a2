"""Choose one detection where a member found several people in an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kp_ray.ensemble.temporal import frame_numbers, rows_by_clip
from kp_ray.keypoints import FloatArray

TRACK_FRAMES = 8
"""Number of nearest frames of the clip whose boxes form the track at an image."""
PersonRule = Literal["score", "largest", "track"]


@dataclass(frozen=True)
class ChosenPeople:
    """Result of `choose_people`.

    Attributes:
        people: indices of the chosen people in rising order, one per group.
        several: number of groups with several candidates.
        other_than_best_score: number of groups in which the rule did not choose the best score.
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
    person_rule: PersonRule,
    threshold: float,
) -> ChosenPeople:
    """Choose one person per group; the people that one member found in one image form a group.

    The candidates of a group are the people whose score reaches `threshold`; if there are none, all its people.

    The rule "track" compares a box with the track's box at the image. The track's box is the median of boxes from the
    `TRACK_FRAMES` nearest other frames of the clip with a person; of each frame it uses every member's best-scoring
    box. Closeness is exp(-d / s), where d is the mean distance between the corners of the two boxes, and s is the
    longer side of the track's box.

    Args:
        images: (P,) image of each person, as an index into `scenes`.
        groups: (P,) number of each person's group.
        boxes: (P, 4) x1, y1, x2, y2 in pixels.
        scores: (P,) scores of the people.
        scenes, cameras, frames: (N,) scene, camera and frame number of each image.
        person_rule: "score" chooses the best score, "largest" the largest box, and "track" the highest product of score
            and closeness, or the best score if the clip has no other frame with a person.
        threshold: lowest score of a candidate.
    """
    people_by_group: dict[int, list[int]] = {}
    for person, group in enumerate(groups):
        people_by_group.setdefault(group, []).append(person)
    best_people = [max(people, key=lambda i: (scores[i], -i)) for people in people_by_group.values()]
    tracks = _Tracks([images[person] for person in best_people], boxes[best_people], scenes, cameras, frames)
    choices, num_several, num_not_best = [], 0, 0
    for best_person, people in zip(best_people, people_by_group.values(), strict=True):
        choice = best_person
        candidates = [person for person in people if scores[person] >= threshold] or people
        if len(candidates) > 1:
            num_several += 1
            track_box = tracks.find_box(images[choice]) if person_rule == "track" else None
            ratings = _rate(boxes[candidates], scores[candidates], person_rule, track_box)
            if ratings.max() > ratings[candidates.index(choice)]:  # the best score wins a tie
                choice = candidates[int(ratings.argmax())]
            num_not_best += choice != best_person
        choices.append(choice)
    return ChosenPeople(sorted(choices), num_several, num_not_best)


def _rate(boxes: FloatArray, scores: FloatArray, person_rule: PersonRule, track_box: FloatArray | None) -> FloatArray:
    """Return the ratings (C,) of C candidates; the candidate with the highest rating is chosen.

    Args:
        boxes: (C, 4) box x1, y1, x2, y2 of each candidate in pixels.
        scores: (C,) score of each candidate.
        person_rule: as in `choose_people`.
        track_box: (4,) the track's box at the image; None for the rules "score" and "largest", and if the clip has no
            other frame with a person.
    """
    if person_rule == "largest":
        return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    if track_box is None:
        return scores
    distances = np.linalg.norm((boxes - track_box).reshape(-1, 2, 2), axis=2).mean(axis=1)
    return np.asarray(scores * np.exp(-distances / max(*(track_box[2:] - track_box[:2]), 1.0)))


class _Tracks:
    """The tracks of all clips."""

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
            boxes: (P, 4) x1, y1, x2, y2 in pixels.
            scenes, cameras, frames: (N,) scene, camera and frame number of each image.
        """
        self.scenes, self.cameras, self.numbers = scenes, cameras, frame_numbers(frames)
        self.boxes: dict[int, list[FloatArray]] = {}
        for image, box in zip(images, boxes, strict=True):
            self.boxes.setdefault(image, []).append(box)
        has_person = np.zeros(len(scenes), dtype=bool)
        has_person[list(self.boxes)] = True
        self.person_rows: Mapping[tuple[str, str], npt.NDArray[np.intp]] = rows_by_clip(
            scenes, cameras, self.numbers, has_person
        )
        self.person_numbers = {clip: self.numbers[rows] for clip, rows in self.person_rows.items()}

    def find_box(self, image: int) -> FloatArray | None:
        """Return the track's box (4,) at an image; None if the clip has no other frame with a person."""
        clip = (self.scenes[image], self.cameras[image])
        if clip not in self.person_rows:
            return None
        # The nearest frames are among the TRACK_FRAMES on either side.
        position = int(np.searchsorted(self.person_numbers[clip], self.numbers[image]))
        window = self.person_rows[clip][max(0, position - TRACK_FRAMES) : position + TRACK_FRAMES + 1]
        neighbours = window[window != image]
        if not len(neighbours):
            return None
        distances = np.abs(self.numbers[neighbours] - self.numbers[image])
        nearest = neighbours[np.argsort(distances, kind="stable")[:TRACK_FRAMES]]
        return np.asarray(np.median([box for row in nearest.tolist() for box in self.boxes[row]], axis=0))
