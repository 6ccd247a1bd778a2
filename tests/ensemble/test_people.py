"""Test the choice of one person among several."""

from typing import Any

import numpy as np
import pytest

from kp_ray.ensemble.people import ChosenPeople, choose_people


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


def test_without_people_nobody_is_chosen() -> None:
    empty = {"images": [], "groups": [], "boxes": np.empty((0, 4)), "scores": np.empty(0)}
    clip = {"scenes": ["s"], "cameras": ["A"], "frames": [1]}
    assert choose_people(**empty, **clip, person_rule="track", threshold=0.5) == ChosenPeople([], 0, 0)
