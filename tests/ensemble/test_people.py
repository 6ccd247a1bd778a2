"""Test the choice of one person among several."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kp_ray.ensemble.people import TRACK_FRAMES, ChosenPeople, _Tracks, choose_people


def make_people(*images: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Make the arguments of `choose_people` for the people (x, side, score) that one member found in each image."""
    rows = [row for row, people in enumerate(images) for _ in people]
    boxes = np.array([[x, 0, x + side, 2 * side] for people in images for x, side, _ in people])
    scores = np.array([score for people in images for *_, score in people])
    return {"images": rows, "groups": rows, "boxes": boxes, "scores": scores}


PEOPLE_BY_IMAGE = [[(100, 50, 0.9)], [(700, 80, 0.95), (104, 50, 0.9)], [(108, 50, 0.9), (100, 10, 0.1)]]


@pytest.mark.parametrize(
    ("person_rule", "people"), [("score", [0, 1, 3]), ("largest", [0, 1, 3]), ("track", [0, 2, 3])]
)
def test_the_rule_decides_among_several_people(person_rule: str, people: list[int]) -> None:
    clip = {"scenes": ["s"] * 3, "cameras": ["A"] * 3, "frames": [1, 2, 3]}
    chosen = choose_people(**make_people(*PEOPLE_BY_IMAGE), **clip, person_rule=person_rule, threshold=0.5)
    expected = ChosenPeople(people, several=1, other_than_best_score=int(person_rule == "track"))
    assert chosen == expected, "the last frame's second person is below the threshold"


def test_the_largest_person_may_have_a_lower_score() -> None:
    two_people = make_people([(100, 50, 0.9), (500, 90, 0.6)])
    clip = {"scenes": ["s"], "cameras": ["A"], "frames": [1]}
    assert choose_people(**two_people, **clip, person_rule="largest", threshold=0.5) == ChosenPeople([1], 1, 1)
    assert choose_people(**two_people, **clip, person_rule="largest", threshold=0.7) == ChosenPeople([0], 0, 0)
    assert choose_people(**two_people, **clip, person_rule="track", threshold=0.5) == ChosenPeople([0], 1, 0), (
        "a single frame has no track"
    )


def test_people_of_another_camera_form_no_track() -> None:
    clip = {"scenes": ["s"] * 3, "cameras": ["A", "B", "A"], "frames": [1, 2, 3]}
    chosen = choose_people(**make_people(*PEOPLE_BY_IMAGE), **clip, person_rule="track", threshold=0.5)
    assert chosen == ChosenPeople([0, 1, 3], several=1, other_than_best_score=0)


def test_if_all_people_of_a_group_are_below_the_threshold_all_are_candidates() -> None:
    clip = {"scenes": ["s"] * 3, "cameras": ["A"] * 3, "frames": [1, 2, 3]}
    chosen = choose_people(**make_people(*PEOPLE_BY_IMAGE), **clip, person_rule="track", threshold=1.0)
    assert chosen == ChosenPeople([0, 2, 3], several=2, other_than_best_score=1)


@given(
    frames=st.lists(st.integers(0, 60), min_size=2, max_size=40, unique=True),
    sides=st.lists(st.integers(1, 99), min_size=40, max_size=40),
)
def test_the_track_is_the_median_box_of_the_nearest_frames(frames: list[int], sides: list[int]) -> None:
    """`choose_people` looks only at a window of frames; the expected boxes are of all frames."""
    num_images = len(frames)
    people = make_people(*[[(0.0, float(side), 0.9)] for side in sides[:num_images]])
    tracks = _Tracks(people["images"], people["boxes"], ["s"] * num_images, ["A"] * num_images, frames)
    for image, frame in enumerate(frames):
        distances = sorted((abs(number - frame), number, row) for row, number in enumerate(frames) if row != image)
        nearest = [row for _, _, row in distances[:TRACK_FRAMES]]
        np.testing.assert_array_equal(tracks.find_box(image), np.median(people["boxes"][nearest], axis=0))


def test_without_people_nobody_is_chosen() -> None:
    empty = {"images": [], "groups": [], "boxes": np.empty((0, 4)), "scores": np.empty(0)}
    clip = {"scenes": ["s"], "cameras": ["A"], "frames": [1]}
    assert choose_people(**empty, **clip, person_rule="track", threshold=0.5) == ChosenPeople([], 0, 0)
